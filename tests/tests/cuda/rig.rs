//! A layer on the GPU with everything that a step needs.

use moe_core::ndarray::Array2;
use moe_core::ops::{RouteRule, ScoreFunction};
use moe_core::{
    Balance, BalanceLoss, Capacity, Device, DropPolicy, Elem, Error, Grads, In, MoeConfig, MoeDevice,
    MoeLayer, Rows, Runner, Saved, Scalar, SharedExperts, Sizes, whole,
};
use moe_cuda::{Cuda, CudaError};
use moe_tests::{Random, available};
use std::sync::OnceLock;

pub(crate) const TOKENS: usize = 300;
pub(crate) const WIDTH: usize = 64;

/// The first GPU, opened once; `None` after a note that `test` is skipped.
pub(crate) fn cuda(test: &str) -> Option<&'static Cuda> {
    static DEVICE: OnceLock<Result<Cuda, CudaError>> = OnceLock::new();
    available(test, "cuda", DEVICE.get_or_init(Cuda::new))
}

/// Routing, experts and nothing else.
pub(crate) fn plain() -> MoeConfig {
    MoeConfig::new(Sizes { width: WIDTH, hidden: 96, experts: 8, top_k: 2 }).expect("a good layer")
}

/// With drops by score, shared experts behind a gate, biases and losses.
pub(crate) fn full() -> MoeConfig {
    let mut config = plain();
    config.rule = RouteRule { score: ScoreFunction::Sigmoid, ..config.rule };
    config.gate_bias = true;
    config.selection_bias = true;
    config.expert_bias = true;
    config.shared = Some(SharedExperts { hidden: 32, gated: true });
    config.capacity = Some(Capacity { factor: 1.0, drop: DropPolicy::ByScore });
    config.balance = Balance { loss: Some(BalanceLoss::Sequence(0.01)), z_loss: 0.01, bias_rate: 0.01 };
    config
}

/// A random matrix.
pub(crate) fn matrix<T: Scalar>(seed: u64, rows: usize, width: usize) -> Array2<T> {
    let values = Random::new(seed).scaled(rows * width, 1.5);
    Array2::from_shape_vec((rows, width), values).expect("the shape of the values")
}

/// Random tokens for the small layers.
pub(crate) fn tokens<T: Scalar>(seed: u64, tokens: usize) -> Array2<T> {
    matrix(seed, tokens, WIDTH)
}

/// What a step gave: y, dx, gradients.
pub(crate) type Outcome<T> = (Vec<T>, Vec<T>, Vec<Vec<f32>>);

pub(crate) struct Rig<T: Scalar<Acc = f32>> {
    pub(crate) layer: MoeLayer<Cuda, T>,
    pub(crate) runner: Runner<Cuda, T>,
    pub(crate) saved: Saved<Cuda, T>,
    pub(crate) grads: Grads<Cuda, T>,
    pub(crate) x: Rows<Cuda, T>,
    pub(crate) dy: Rows<Cuda, T>,
    pub(crate) y: Rows<Cuda, T>,
    pub(crate) dx: Rows<Cuda, T>,
}

impl<T: Scalar<Acc = f32>> Rig<T>
where
    Cuda: MoeDevice<T>,
{
    /// For calls of `count` tokens, by a runner that could take `room`.
    pub(crate) fn with_room(device: &Cuda, config: &MoeConfig, count: usize, room: usize) -> Self {
        let layer = MoeLayer::init(device, config, 3).expect("a layer");
        let runner = Runner::new(device, config, room).expect("a runner");
        Self {
            saved: runner.saved(config).expect("room"),
            grads: layer.grads().expect("gradients"),
            x: runner.upload(matrix(1, count, config.width).view()).expect("x"),
            dy: runner.upload(matrix(2, count, config.width).view()).expect("dy"),
            y: runner.rows(count, config.width).expect("y"),
            dx: runner.rows(count, config.width).expect("dx"),
            layer,
            runner,
        }
    }

    pub(crate) fn new(device: &Cuda, config: &MoeConfig) -> Self {
        Self::with_room(device, config, TOKENS, TOKENS)
    }

    /// Other values in place of x.
    pub(crate) fn write(&mut self, x: &Array2<T>) {
        self.runner.write(x.view(), &mut self.x).expect("x");
    }

    pub(crate) fn forward(&mut self) -> Result<(), Error<CudaError>> {
        self.runner.forward(&self.layer, &self.x, &mut self.y)
    }

    /// Forward and backward.
    pub(crate) fn step(&mut self) -> Outcome<T> {
        self.launch().expect("a step");
        self.outcome()
    }

    /// Puts forward and backward on the stream.
    pub(crate) fn launch(&mut self) -> Result<(), Error<CudaError>> {
        let Self { layer, runner, saved, grads, x, dy, y, dx } = self;
        grads.clear();
        runner.forward_train(layer, x, saved, y)?;
        runner.backward(layer, x, saved, dy, dx, grads)
    }

    /// What the last step gave.
    pub(crate) fn outcome(&self) -> Outcome<T> {
        let grads = self.grads.weights.list().into_iter().flatten();
        let grads = grads.map(|grad| self.read(whole::<Cuda, f32>(grad))).collect();
        (self.read(self.y.view()), self.read(self.dx.view()), grads)
    }

    pub(crate) fn read<E: Elem>(&self, view: In<'_, Cuda, E>) -> Vec<E> {
        let mut values = vec![E::default(); view.len()];
        let session = self.runner.session();
        session.device().download(session.stream(), view, &mut values).expect("a download");
        values
    }

    /// An error must not spoil what comes after it.
    pub(crate) fn still_gives(&mut self, want: &Outcome<T>) {
        assert!(self.step() == *want, "a step after an error has other bits");
    }
}
