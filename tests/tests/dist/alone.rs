//! One process with the whole layer and all tokens: what ranks are compared with.

use crate::cases::Case;
use crate::layout::Layout;
use moe_core::ndarray::Array2;
use moe_core::{
    Accum, Batch, Elem, In, MoeConfig, MoeDevice, MoeLayer, Runner, Scalar, Session, StateTensor, whole,
};
use moe_tests::Random;

/// Rows of the step, and what the whole layer is made of.
pub(crate) struct Step<T: Scalar> {
    pub(crate) x: Vec<T>,
    pub(crate) dy: Vec<T>,
    pub(crate) state: Vec<StateTensor>,
    width: usize,
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome<T: Scalar> {
    /// by token
    pub(crate) y: Vec<T>,
    pub(crate) dx: Vec<T>,
    /// in the order of the layer's tensors
    pub(crate) grads: Vec<Option<Vec<T::Acc>>>,
    /// of the tokens that were routed here
    pub(crate) ids: Vec<u32>,
    pub(crate) weights: Vec<T::Acc>,
    pub(crate) load: Vec<u32>,
    pub(crate) losses: [f64; 2],
    pub(crate) dropped: u64,
}

impl<T: Scalar> Step<T> {
    pub(crate) fn new<D: MoeDevice<T>>(device: &D, case: &Case, layout: &Layout) -> Self {
        let (width, experts) = (case.config.width, case.config.experts);
        let rows = |seed| Random::new(seed).scaled(layout.total() * width, 1.5);
        let layer = MoeLayer::<D, T>::init(device, &case.config, 3).expect("a layer");
        let mut state = layer.state().expect("its tensors");
        for (tensor, seed) in state.iter_mut().zip(11..) {
            let mut random = Random::new(seed);
            let bytes = match tensor.name.as_str() {
                "gate_bias" if case.idle => {
                    let bias = |e| T::narrow(T::Acc::of(if 2 * e < experts { -50.0 } else { 0.0 }));
                    bytes_of::<T>(&(0..experts).map(bias).collect::<Vec<_>>())
                }
                "gate_bias" | "b13" | "b2" => {
                    bytes_of::<T>(&random.scaled(tensor.shape.iter().product(), 0.5))
                }
                "selection_bias" => bytes_of::<T::Acc>(&random.scaled(experts, 0.2)),
                _ => continue,
            };
            tensor.bytes = bytes;
        }
        Self { x: rows(1), dy: rows(2), state, width }
    }

    /// The rows of some tokens, as a matrix.
    pub(crate) fn rows(&self, of: &[T], tokens: &[usize]) -> Array2<T> {
        let width = self.width;
        let values = tokens.iter().flat_map(|token| of[token * width..][..width].to_vec()).collect();
        Array2::from_shape_vec((tokens.len(), width), values).expect("the shape of the values")
    }

    /// The step in one process. With a capacity it takes the segments of the ranks, since drops are made by segment.
    pub(crate) fn alone<D: MoeDevice<T>>(&self, device: &D, case: &Case, layout: &Layout) -> Outcome<T> {
        let config = &case.config;
        let all: Vec<usize> = (0..layout.total()).collect();
        let segments = if config.capacity.is_some() { layout.segments() } else { vec![all] };
        let layer =
            MoeLayer::<D, T>::from_state(device, config, self.state.clone()).expect("its own tensors");
        let mut runner = Runner::new(device, config, layout.total()).expect("a runner");
        let (mut saved, mut grads) = (runner.saved(config).expect("room"), layer.grads().expect("gradients"));
        let (tokens, sequences) = (layout.total(), layout.all());
        let mut out = Outcome {
            y: vec![T::default(); self.x.len()],
            dx: vec![T::default(); self.x.len()],
            ids: vec![0; layout.total() * config.top_k],
            weights: vec![T::Acc::default(); layout.total() * config.top_k],
            grads: Vec::new(),
            load: Vec::new(),
            losses: [0.0; 2],
            dropped: 0,
        };
        for _ in 0..case.repeats {
            for segment in &segments {
                runner
                    .set_batch(&Batch {
                        sequences: if segments.len() == 1 { &sequences } else { &[] },
                        batch_tokens: Some(tokens),
                        step_tokens: Some(case.repeats * tokens),
                        step_sequences: Some(case.repeats * sequences.len()),
                        ..Batch::default()
                    })
                    .expect("a good batch");
                let [x, dy] = [&self.x, &self.dy]
                    .map(|rows| runner.upload(self.rows(rows, segment).view()).expect("rows"));
                let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
                runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
                let routing = saved.routing();
                let ids = read(runner.session(), routing.ids().expect("a routing"));
                let weights = read(runner.session(), routing.weights().expect("a routing"));
                for (at, token) in segment.iter().enumerate() {
                    let (from, to) = (at * config.top_k, token * config.top_k);
                    out.ids[to..to + config.top_k].copy_from_slice(&ids[from..from + config.top_k]);
                    out.weights[to..to + config.top_k].copy_from_slice(&weights[from..from + config.top_k]);
                }
                let figures = runner.figures(&saved).expect("figures");
                out.losses[0] += figures.balance_loss;
                out.losses[1] += figures.z_loss;
                out.dropped += figures.dropped;
                runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
                for (whole, part) in [(&mut out.y, &y), (&mut out.dx, &dx)] {
                    let part = read(runner.session(), part.view());
                    for (row, token) in part.chunks(self.width).zip(segment) {
                        whole[token * self.width..][..self.width].copy_from_slice(row);
                    }
                }
            }
        }
        out.grads = tensors(runner.session(), &grads);
        out.load = read(runner.session(), whole::<D, u32>(&grads.load));
        out
    }
}

/// A rank's part of the whole's tensors.
pub(crate) fn cut(config: &MoeConfig, state: &[StateTensor]) -> Vec<StateTensor> {
    let specs = config.tensors();
    let part = |tensor: &StateTensor| {
        let spec = specs.iter().flatten().find(|spec| spec.name == tensor.name);
        let Some(spec) = spec else { return tensor.clone() };
        let size = tensor.dtype.size();
        let bytes =
            spec.runs().flat_map(|run| tensor.bytes[run.start * size..run.end * size].to_vec()).collect();
        StateTensor { shape: spec.shape().to_vec(), bytes, ..tensor.clone() }
    };
    state.iter().map(part).collect()
}

/// All gradients, on the host.
pub(crate) fn tensors<T: Scalar, D: MoeDevice<T>>(
    session: &Session<D>,
    grads: &moe_core::Grads<D, T>,
) -> Vec<Option<Vec<T::Acc>>> {
    let read_one = |buffer| read(session, whole::<D, T::Acc>(buffer));
    grads.weights.list().into_iter().map(|buffer| buffer.map(read_one)).collect()
}

/// The elements of a view, on the host.
pub(crate) fn read<E: Elem, D: moe_core::Device>(session: &Session<D>, view: In<'_, D, E>) -> Vec<E> {
    let mut values = vec![E::default(); view.len()];
    session.download(view, &mut values).expect("a readable device");
    values
}

fn bytes_of<E: Elem>(values: &[E]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}
