//! The backward products against finite differences of the forward ones, in f64.

use crate::run::{read, run, write};
use approx::assert_abs_diff_eq;
use moe_core::ops::{
    Activation, ExpertDims, ExpertDown, ExpertDownArgs, ExpertDownBwd, ExpertDownBwdArgs, ExpertUp,
    ExpertUpArgs, ExpertUpBwd, ExpertUpBwdArgs, ExpertWgrad, ExpertWgradArgs, Weight, WgradDims,
};
use moe_tests::{Random, Rows, Spread};

const ACTIVATIONS: [Activation; 8] = [
    Activation::SwiGlu,
    Activation::GeGlu,
    Activation::GeGluTanh,
    Activation::ClampedSwiGlu { alpha: 1.702, limit: 0.8 },
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::SquaredRelu,
    Activation::Linear,
];

/// Experts between x and the loss `sum over rows of <dout of its token, [s *] y>`.
#[derive(Clone)]
struct Experts {
    dims: ExpertDims,
    scores_first: bool,
    rows: Rows,
    dout: Vec<f64>,
    /// x, w13, b13, w2, b2, scores
    inputs: [Vec<f64>; 6],
}

const NAMES: [&str; 6] = ["x", "w13", "b13", "w2", "b2", "scores"];

impl Experts {
    fn new(activation: Activation, scores_first: bool, bias_shares: usize) -> Self {
        let mut random = Random::new(8);
        let (tokens, fan, experts, width, hidden) = (5, 2, 3, 4, 3);
        let mut rows = Rows::new(&mut random, tokens, fan, experts, Spread::Dropping);
        rows = Rows::of(rows.ids, experts, tokens * fan);
        let dims =
            ExpertDims { tokens, fan, rows: rows.bound, experts, width, hidden, activation, bias_shares };
        let up = dims.up_width();
        Self {
            dims,
            scores_first,
            dout: random.values(tokens * width),
            inputs: [
                random.values(tokens * width),
                random.values(experts * up * width),
                random.values(experts * up),
                random.values(experts * width * hidden),
                random.values(experts * width),
                random.scores(tokens * fan),
            ],
            rows,
        }
    }

    /// h and y.
    fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let ([x, w13, b13, w2, b2, scores], dims) = (&self.inputs, self.dims);
        let (mut h, mut a) = (vec![0.0; dims.rows * dims.up_width()], vec![0.0; dims.rows * dims.hidden]);
        let args = ExpertUpArgs {
            x: read(x),
            index: Some(read(&self.rows.index)),
            offsets: read(&self.rows.offsets),
            w13: Weight::Plain(read(w13)),
            b13: Some(read(b13)),
            weights: self.scores_first.then(|| read(scores)),
            h: Some(write(&mut h)),
            a: write(&mut a),
        };
        run::<ExpertUp<f64>>(dims, args);
        let mut y = vec![0.0; dims.rows * dims.width];
        let args = ExpertDownArgs {
            a: read(&a),
            offsets: read(&self.rows.offsets),
            w2: Weight::Plain(read(w2)),
            b2: Some(read(b2)),
            out_index: None,
            y: write(&mut y),
        };
        run::<ExpertDown<f64>>(dims, args);
        (h, y)
    }

    fn loss(&self) -> f64 {
        let (_, y) = self.forward();
        let mut loss = 0.0;
        for row in 0..self.rows.used() {
            let slot = self.rows.index[row] as usize;
            let s = if self.scores_first { 1.0 } else { self.inputs[5][slot] };
            for d in 0..self.dims.width {
                loss +=
                    s * y[row * self.dims.width + d] * self.dout[slot / self.dims.fan * self.dims.width + d];
            }
        }
        loss
    }

    /// Gradients of the inputs. That of b2 is complete on every rank that shares it.
    fn gradients(&self) -> [Vec<f64>; 6] {
        let ([x, w13, b13, w2, b2, scores], dims) = (&self.inputs, self.dims);
        let (index, offsets) = (read(&self.rows.index), read(&self.rows.offsets));
        let (mut dz, mut a) = (self.forward().0, vec![0.0; dims.rows * dims.hidden]);
        let mut ds = vec![0.0; scores.len()];
        let args = ExpertDownBwdArgs {
            dout: read(&self.dout),
            index: Some(index),
            offsets,
            w2: Weight::Plain(read(w2)),
            b2: Some(read(b2)),
            b13: Some(read(b13)),
            weights: Some(read(scores)),
            scores_first: self.scores_first,
            h: write(&mut dz),
            a: write(&mut a),
            ds: Some(write(&mut ds)),
        };
        run::<ExpertDownBwd<f64>>(dims, args);
        let mut dx_rows = vec![0.0; dims.rows * dims.width];
        let args = ExpertUpBwdArgs {
            dz: read(&dz),
            offsets,
            w13: Weight::Plain(read(w13)),
            weights: self.scores_first.then(|| read(scores)),
            index: Some(index),
            out_index: None,
            dx: write(&mut dx_rows),
        };
        run::<ExpertUpBwd<f64>>(dims, args);
        let mut dx = vec![0.0; x.len()];
        for row in 0..self.rows.used() {
            let token = self.rows.index[row] as usize / dims.fan;
            (0..dims.width).for_each(|d| dx[token * dims.width + d] += dx_rows[row * dims.width + d]);
        }
        let (dw2, db2) = self.wgrad(true, &self.dout, &a);
        let (dw13, db13) = self.wgrad(false, &dz, x);
        [dx, dw13, db13, dw2, db2, ds]
    }

    /// Gradients of the down product's weight and bias, or of the up product's.
    fn wgrad(&self, down: bool, left: &[f64], right: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let ExpertDims { tokens, fan, rows, experts, width, hidden, .. } = self.dims;
        let (m, n) = if down { (width, hidden) } else { (self.dims.up_width(), width) };
        let (mut dw, mut db) = (vec![f64::NAN; experts * m * n], vec![f64::NAN; experts * m]);
        let scores = read(&self.inputs[5]);
        let args = ExpertWgradArgs {
            left: read(left),
            right: read(right),
            index: Some(read(&self.rows.index)),
            offsets: read(&self.rows.offsets),
            right_weights: (!down && self.scores_first).then_some(scores),
            bias_weights: (down && !self.scores_first).then_some(scores),
            dw: write(&mut dw),
            dbias: Some(write(&mut db)),
        };
        let dims = WgradDims {
            tokens,
            fan,
            rows,
            experts,
            left: m,
            right: n,
            gather_left: down,
            gather_right: !down,
            accumulate: false,
        };
        run::<ExpertWgrad<f64>>(dims, args);
        (dw, db)
    }
}

fn every_gradient_is_a_slope(experts: &Experts) {
    let step = 1e-5;
    let shares = experts.dims.bias_shares as f64;
    for (which, gradient) in experts.gradients().into_iter().enumerate() {
        for (at, gradient) in gradient.into_iter().enumerate() {
            let loss_at = |by: f64| {
                let mut moved = experts.clone();
                moved.inputs[which][at] += by;
                moved.loss()
            };
            let mut slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
            if NAMES[which] == "b2" {
                slope *= shares;
            }
            let (activation, first) = (experts.dims.activation, experts.scores_first);
            assert!(
                (slope - gradient).abs() < 1e-7,
                "{}[{at}], {activation:?}, scores first {first}: slope {slope}, gradient {gradient}",
                NAMES[which]
            );
        }
    }
}

#[test]
fn expert_gradients_are_slopes_for_every_activation_and_order() {
    for activation in ACTIVATIONS {
        for scores_first in [false, true] {
            every_gradient_is_a_slope(&Experts::new(activation, scores_first, 1));
        }
    }
}

#[test]
fn a_shared_down_bias_is_divided_and_its_gradient_is_complete() {
    for scores_first in [false, true] {
        every_gradient_is_a_slope(&Experts::new(Activation::SwiGlu, scores_first, 3));
    }
}

#[test]
fn scores_that_sum_over_ranks_add_up_to_those_of_one_rank() {
    // Two ranks with half of the bias each: ds of the bias's part must not be counted twice.
    let whole = Experts::new(Activation::Linear, false, 1);
    let mut share = Experts { dims: ExpertDims { bias_shares: 2, ..whole.dims }, ..whole.clone() };
    let ds = |experts: &Experts| experts.gradients()[5].clone();
    share.inputs[3].fill(0.0);
    let (bias_only, mut no_bias) = (ds(&share), whole.clone());
    no_bias.inputs[4].fill(0.0);
    for ((whole, half), rest) in ds(&whole).into_iter().zip(bias_only).zip(ds(&no_bias)) {
        assert_abs_diff_eq!(whole, 2.0 * half + rest, epsilon = 1e-12);
    }
}
