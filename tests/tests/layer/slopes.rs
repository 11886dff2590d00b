//! Every gradient of every variant against finite differences, in f64 on the reference device.

use crate::step::{layer, stamped, step, tensor, tokens};
use crate::variants::{WIDTH, variants};
use moe_core::ndarray::Array2;
use moe_core::{Batch, Host, MoeConfig, MoeLayer, StateTensor};

const TOKENS: usize = 6;
const STEP: f64 = 1e-5;

/// A layer, its input, and the gradient at its output.
struct Problem {
    config: MoeConfig,
    state: Vec<StateTensor>,
    x: Array2<f64>,
    dy: Array2<f64>,
}

impl Problem {
    fn new(config: MoeConfig) -> Self {
        let state = layer::<f64, _>(&Host, &config).state().expect("a state");
        Self { config, state, x: tokens(1, TOKENS, WIDTH), dy: tokens(2, TOKENS, WIDTH) }
    }

    fn layer(&self) -> MoeLayer<Host, f64> {
        MoeLayer::from_state(&Host, &self.config, self.state.clone()).expect("its own state")
    }

    fn batch(&self) -> Batch<'static> {
        Batch { sequences: &[2, 4], step_tokens: Some(10), step_sequences: Some(3), ..stamped() }
    }

    /// `<dy, y>` and the losses.
    fn loss(&self) -> f64 {
        let outcome = step(&self.layer(), &self.batch(), self.x.view(), self.dy.view());
        let output: f64 = outcome.y.iter().zip(&self.dy).map(|(y, dy)| y * dy).sum();
        output + outcome.figures.balance_loss + outcome.figures.z_loss
    }

    /// The difference quotient of the loss at one element of `x`, or of a tensor.
    fn slope(&mut self, name: &str, at: usize) -> f64 {
        let kept = self.get(name, at);
        let mut loss_at = |value| {
            self.set(name, at, value);
            self.loss()
        };
        let slope = (loss_at(kept + STEP) - loss_at(kept - STEP)) / (2.0 * STEP);
        self.set(name, at, kept);
        slope
    }

    fn get(&mut self, name: &str, at: usize) -> f64 {
        match name {
            "x" => self.x[[at / WIDTH, at % WIDTH]],
            name => {
                let bytes = &tensor(&mut self.state, name).bytes[at * 8..][..8];
                f64::from_ne_bytes(bytes.try_into().expect("eight bytes"))
            }
        }
    }

    fn set(&mut self, name: &str, at: usize, value: f64) {
        match name {
            "x" => self.x[[at / WIDTH, at % WIDTH]] = value,
            name => {
                let bytes = &mut tensor(&mut self.state, name).bytes[at * 8..][..8];
                bytes.copy_from_slice(&value.to_ne_bytes());
            }
        }
    }
}

/// Every element of small tensors, and every seventh of large ones.
fn compare(problem: &mut Problem, variant: &str, name: &str, gradient: &[f64]) {
    let stride = if gradient.len() > 40 { 7 } else { 1 };
    for at in (0..gradient.len()).step_by(stride) {
        let (slope, got) = (problem.slope(name, at), gradient[at]);
        assert!((slope - got).abs() < 2e-7, "{variant}: {name}[{at}] has slope {slope} and gradient {got}");
    }
}

#[test]
fn every_gradient_of_every_variant_is_a_slope() {
    for (variant, config) in variants() {
        let mut problem = Problem::new(config);
        let outcome = step(&problem.layer(), &problem.batch(), problem.x.view(), problem.dy.view());
        if config.capacity.is_some() {
            assert!(outcome.figures.dropped > 0, "{variant}: nothing was dropped");
        }
        compare(&mut problem, &variant, "x", &outcome.dx);
        for (name, gradient) in &outcome.grads {
            assert!(gradient.iter().any(|g| *g != 0.0), "{variant}: {name} has no gradient at all");
            compare(&mut problem, &variant, name, gradient);
        }
    }
}
