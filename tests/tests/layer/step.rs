//! One training step of a layer, with everything that came out of it on the host.

use moe_core::ndarray::{Array2, ArrayView2};
use moe_core::ops::{MoeDevice, Stamp};
use moe_core::{
    Batch, Device, Elem, Figures, Grads, In, MoeLayer, Runner, Saved, Scalar, StateTensor, whole,
};
use moe_tests::Random;

/// What a step gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome<T: Scalar> {
    pub(crate) y: Vec<T>,
    pub(crate) dx: Vec<T>,
    pub(crate) grads: Vec<(&'static str, Vec<T::Acc>)>,
    pub(crate) load: Vec<u32>,
    pub(crate) ids: Vec<u32>,
    pub(crate) figures: Figures,
}

/// A stamp that jitter depends on.
pub(crate) fn stamped() -> Batch<'static> {
    Batch { stamp: Stamp { seed: 9, step: 2, layer: 0, first_token: 30 }, ..Batch::default() }
}

/// A random matrix.
pub(crate) fn tokens<T: Scalar>(seed: u64, tokens: usize, width: usize) -> Array2<T> {
    let values = Random::new(seed).scaled(tokens * width, 1.5);
    Array2::from_shape_vec((tokens, width), values).expect("the shape of the values")
}

/// The elements of a view, on the host.
pub(crate) fn read<E: Elem, D: Device>(device: &D, stream: &D::Stream, view: In<'_, D, E>) -> Vec<E> {
    let mut values = vec![E::default(); view.len()];
    device.download(stream, view, &mut values).expect("a readable device");
    values
}

/// Forward and backward with a runner of its own.
pub(crate) fn step<T: Scalar, D: MoeDevice<T>>(
    layer: &MoeLayer<D, T>,
    batch: &Batch<'_>,
    x: ArrayView2<'_, T>,
    dy: ArrayView2<'_, T>,
) -> Outcome<T> {
    let mut runner = Runner::new(layer.device(), layer.config(), x.nrows().max(1)).expect("a runner");
    let mut grads = layer.grads().expect("gradients");
    step_with(&mut runner, layer, &mut grads, batch, x, dy)
}

/// Forward and backward that add to `grads`.
pub(crate) fn step_with<T: Scalar, D: MoeDevice<T>>(
    runner: &mut Runner<D, T>,
    layer: &MoeLayer<D, T>,
    grads: &mut Grads<D, T>,
    batch: &Batch<'_>,
    x: ArrayView2<'_, T>,
    dy: ArrayView2<'_, T>,
) -> Outcome<T> {
    let mut saved = runner.saved(layer.config()).expect("room for what backward needs");
    step_in(runner, layer, &mut saved, grads, batch, x, dy)
}

/// As [`step_with`], in a `saved` that may have served other steps.
pub(crate) fn step_in<T: Scalar, D: MoeDevice<T>>(
    runner: &mut Runner<D, T>,
    layer: &MoeLayer<D, T>,
    saved: &mut Saved<D, T>,
    grads: &mut Grads<D, T>,
    batch: &Batch<'_>,
    x: ArrayView2<'_, T>,
    dy: ArrayView2<'_, T>,
) -> Outcome<T> {
    runner.set_batch(batch).expect("a good batch");
    let (x, dy) = (runner.upload(x).expect("x"), runner.upload(dy).expect("dy"));
    let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
    runner.forward_train(layer, &x, saved, &mut y).expect("forward");
    let figures = runner.figures(saved).expect("figures");
    let device = layer.device().clone();
    let stream = runner.session().stream();
    let ids = read::<u32, D>(&device, stream, saved.routing().ids().expect("ids"));
    runner.backward(layer, &x, saved, &dy, &mut dx, grads).expect("backward");
    let stream = runner.session().stream();
    let named = layer.config().tensors().into_iter().zip(grads.weights.list());
    let grads_now = named.filter_map(|(spec, buffer)| {
        let values = read::<T::Acc, D>(&device, stream, whole::<D, T::Acc>(buffer?));
        Some((spec?.name, values))
    });
    Outcome {
        y: read::<T, D>(&device, stream, y.view()),
        dx: read::<T, D>(&device, stream, dx.view()),
        grads: grads_now.collect(),
        load: read::<u32, D>(&device, stream, whole::<D, u32>(&grads.load)),
        ids,
        figures,
    }
}

/// A layer whose biases are not 0, so that they count.
pub(crate) fn layer<T: Scalar, D: MoeDevice<T>>(device: &D, config: &moe_core::MoeConfig) -> MoeLayer<D, T> {
    let mut random = Random::new(21);
    let mut state =
        MoeLayer::<D, T>::init(device, config, 4).and_then(|layer| layer.state()).expect("a layer");
    for tensor in &mut state {
        // The selection bias has the accumulation type.
        let bytes = if tensor.name == "selection_bias" {
            bytes_of(&random.scaled::<T::Acc>(config.experts, 0.2))
        } else {
            bytes_of(&random.scaled::<T>(tensor.bytes.len() / size_of::<T>(), 0.8))
        };
        tensor.bytes = bytes;
    }
    MoeLayer::from_state(device, config, state).expect("its own tensors")
}

fn bytes_of<E: Elem>(values: &[E]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// The tensor of this name.
pub(crate) fn tensor<'a>(state: &'a mut [StateTensor], name: &str) -> &'a mut StateTensor {
    state.iter_mut().find(|tensor| tensor.name == name).expect("a tensor of the layer")
}
