//! Gradients on the GPU against finite differences there, in f32, with recorded ids: no selection flips between two losses.

use crate::rig::{cuda, matrix};
use moe_core::ndarray::Array2;
use moe_core::{Device, MoeConfig, MoeLayer, Rows, Runner, Saved, SharedExperts, Sizes, StateTensor, whole};
use moe_cuda::Cuda;
use moe_tests::Random;

const TOKENS: usize = 24;
const WIDTH: usize = 32;

/// Distance of the losses. Sums with it are rounded like all f32: by less than 1e-7.
const STEP: f32 = 1.0 / 32.0;

/// `<dy, y>` in f32 has an error of about 1e-6, which a quotient of [`STEP`] makes 5e-5; the fifth derivative's share is smaller.
const BOUND: f64 = 1e-3;

struct Problem<'a> {
    device: &'a Cuda,
    config: MoeConfig,
    state: Vec<StateTensor>,
    x: Array2<f32>,
    dy: Array2<f32>,
    ids: Vec<u32>,
    runner: Runner<Cuda, f32>,
    saved: Saved<Cuda, f32>,
}

impl<'a> Problem<'a> {
    fn new(device: &'a Cuda, config: MoeConfig) -> Self {
        let mut random = Random::new(5);
        let mut state =
            MoeLayer::<Cuda, f32>::init(device, &config, 1).and_then(|layer| layer.state()).expect("a layer");
        for tensor in &mut state {
            let values: Vec<f32> = random.scaled(tensor.bytes.len() / 4, 0.3);
            tensor.bytes = bytemuck::cast_slice(&values).to_vec();
        }
        let runner = Runner::new(device, &config, TOKENS).expect("a runner");
        let ids = random.ids(TOKENS, config.top_k, config.experts);
        let (x, dy) = (matrix(1, TOKENS, WIDTH), matrix(2, TOKENS, WIDTH));
        Self { saved: runner.saved(&config).expect("room"), device, config, state, x, dy, ids, runner }
    }

    /// Forward: layer, x and y.
    fn forward(&mut self) -> (MoeLayer<Cuda, f32>, Rows<Cuda, f32>, Rows<Cuda, f32>) {
        let layer =
            MoeLayer::from_state(self.device, &self.config, self.state.clone()).expect("its own state");
        let x = self.runner.upload(self.x.view()).expect("x");
        let mut y = self.runner.like(&x).expect("y");
        self.runner.replay(&layer, &x, &self.ids, &mut self.saved).expect("a replay");
        self.runner.experts(&layer, &x, &mut self.saved, &mut y).expect("forward");
        (layer, x, y)
    }

    /// `<dy, y>`
    fn loss(&mut self) -> f64 {
        let (_, _, y) = self.forward();
        let y = self.runner.download(&y).expect("y");
        y.iter().zip(&self.dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum()
    }

    /// The gradient of x and of every tensor, with its name.
    fn gradients(&mut self) -> Vec<(&'static str, Vec<f32>)> {
        let (layer, x, _) = self.forward();
        let dy = self.runner.upload(self.dy.view()).expect("dy");
        let (mut dx, mut grads) = (self.runner.like(&x).expect("dx"), layer.grads().expect("gradients"));
        self.runner.backward(&layer, &x, &mut self.saved, &dy, &mut dx, &mut grads).expect("backward");
        let dx = self.runner.download(&dx).expect("dx").iter().copied().collect();
        let mut all = vec![("x", dx)];
        for (spec, buffer) in self.config.tensors().into_iter().zip(grads.weights.list()) {
            if let (Some(spec), Some(buffer)) = (spec, buffer) {
                let mut values = vec![0.0; spec.len()];
                let view = whole::<Cuda, f32>(buffer);
                self.device.download(self.runner.session().stream(), view, &mut values).expect("a copy");
                all.push((spec.name, values));
            }
        }
        all
    }

    /// Puts another value in the place of one element, and returns the one that was there.
    fn replace(&mut self, name: &str, at: usize, value: f32) -> f32 {
        if name == "x" {
            return std::mem::replace(&mut self.x[[at / WIDTH, at % WIDTH]], value);
        }
        let tensor = self.state.iter_mut().find(|tensor| tensor.name == name);
        let place = &mut tensor.expect("a tensor of the layer").bytes[at * 4..][..4];
        let kept = bytemuck::pod_read_unaligned(place);
        place.copy_from_slice(&value.to_ne_bytes());
        kept
    }

    /// The difference quotient of fourth order at one element.
    fn slope(&mut self, name: &str, at: usize) -> f64 {
        let kept = self.replace(name, at, 0.0);
        let mut loss_at = |steps: f32| {
            self.replace(name, at, kept + steps * STEP);
            self.loss()
        };
        let (near, far) = (loss_at(1.0) - loss_at(-1.0), loss_at(2.0) - loss_at(-2.0));
        self.replace(name, at, kept);
        (8.0 * near - far) / (12.0 * f64::from(STEP))
    }
}

fn plain() -> MoeConfig {
    MoeConfig::new(Sizes { width: WIDTH, hidden: 24, experts: 4, top_k: 2 }).expect("a good layer")
}

fn rich() -> MoeConfig {
    let mut config = plain();
    config.gate_bias = true;
    config.expert_bias = true;
    config.shared = Some(SharedExperts { hidden: 16, gated: true });
    config
}

#[test]
fn gradients_on_the_gpu_are_slopes() {
    let Some(device) = cuda("gradients_on_the_gpu_are_slopes") else { return };
    for config in [plain(), rich()] {
        let (mut problem, mut random) = (Problem::new(device, config), Random::new(9));
        for (name, gradient) in problem.gradients() {
            assert!(gradient.iter().any(|g| *g != 0.0), "{name} has no gradient at all");
            for _ in 0..8 {
                let at = random.below(gradient.len());
                let (slope, got) = (problem.slope(name, at), f64::from(gradient[at]));
                let most = BOUND * got.abs().max(1.0);
                assert!((slope - got).abs() < most, "{name}[{at}] has slope {slope} and gradient {got}");
            }
        }
    }
}
