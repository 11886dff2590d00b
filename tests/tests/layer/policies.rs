//! Memory policies and micro-batches: the same gradients by another way.

use crate::devices::{HOST, on_every_device};
use crate::step::{layer, stamped, step, step_with, tokens};
use crate::variants::{WIDTH, changed, variants};
use approx::assert_abs_diff_eq;
use moe_core::ndarray::s;
use moe_core::ops::{ExpertUp, MoeDevice, Stamp};
use moe_core::{BalanceLoss, Batch, MemoryPolicy, MoeLayer, Op, Runner, Scalar};

fn recomputing_changes_nothing<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for (variant, config) in variants() {
        let (x, dy) = (tokens::<T>(1, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
        let with = |memory| {
            let layer = layer::<T, D>(device, &changed(config, |c| c.memory = memory));
            step(&layer, &stamped(), x.view(), dy.view())
        };
        assert_eq!(with(MemoryPolicy::Keep), with(MemoryPolicy::Recompute), "{variant}");
    }
}
on_every_device!(recomputation_gives_the_bits_of_keeping => recomputing_changes_nothing);

#[test]
fn recomputation_keeps_less_and_computes_h_twice() {
    let config = variants()[0].1;
    let kept = |memory| {
        let config = changed(config, |c| c.memory = memory);
        let layer: MoeLayer<_, f32> = layer(&HOST, &config);
        let mut runner = Runner::new(&HOST, &config, 4).expect("a runner");
        let mut grads = layer.grads().expect("gradients");
        let (x, dy) = (tokens(1, 4, WIDTH), tokens(2, 4, WIDTH));
        step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
        let bytes = runner.saved(&config).expect("room").bytes_per_token();
        (bytes, runner.trace().launches(ExpertUp::<f32>::ID))
    };
    let ((more, once), (less, twice)) = (kept(MemoryPolicy::Keep), kept(MemoryPolicy::Recompute));
    assert!(less < more);
    assert_eq!((once, twice), (1, 2));
}

/// Losses of whole sequences add up over micro-batches; the batch-wise one does not, by its definition.
#[test]
fn micro_batches_add_up_to_the_whole_step() {
    for (variant, config) in variants() {
        if config.capacity.is_some() || matches!(config.balance.loss, Some(BalanceLoss::Batch(_))) {
            continue;
        }
        let layer: MoeLayer<_, f64> = layer(&HOST, &config);
        let (x, dy) = (tokens(1, 10, WIDTH), tokens(2, 10, WIDTH));
        let stamp = stamped().stamp;
        let batch = Batch { sequences: &[3, 4, 3], stamp, ..Batch::default() };
        let whole = step(&layer, &batch, x.view(), dy.view());
        let mut runner = Runner::new(&HOST, &config, 10).expect("a runner");
        let mut grads = layer.grads().expect("gradients");
        let mut part = |sequences, from: usize, to: usize| {
            let stamp = Stamp { first_token: stamp.first_token + from as u64, ..stamp };
            let (step_tokens, step_sequences) = (Some(10), Some(3));
            let batch = Batch { sequences, step_tokens, step_sequences, stamp, ..Batch::default() };
            let (x, dy) = (x.slice(s![from..to, ..]), dy.slice(s![from..to, ..]));
            step_with(&mut runner, &layer, &mut grads, &batch, x, dy)
        };
        let first = part(&[3], 0, 3);
        let last = part(&[4, 3], 3, 10);
        assert_eq!(whole.load, last.load, "{variant}: load");
        let losses = |figures: &moe_core::Figures| figures.balance_loss + figures.z_loss;
        let sum = losses(&first.figures) + losses(&last.figures);
        assert_abs_diff_eq!(losses(&whole.figures), sum, epsilon = 1e-12);
        for ((name, whole), (_, sum)) in whole.grads.iter().zip(&last.grads) {
            for (whole, sum) in whole.iter().zip(sum) {
                assert!((whole - sum).abs() < 1e-12, "{variant}: {name}: {whole} and {sum}");
            }
        }
        assert_eq!(whole.dx, [first.dx, last.dx].concat(), "{variant}: dx");
    }
}

fn first_overwrites<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for (variant, config) in variants() {
        let layer = layer::<T, D>(device, &config);
        let mut runner = Runner::new(device, &config, 9).expect("a runner");
        let mut grads = layer.grads().expect("gradients");
        let (x, dy) = (tokens::<T>(1, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
        let other = tokens::<T>(3, 9, WIDTH);
        let want = step(&layer, &stamped(), x.view(), dy.view());
        step_with(&mut runner, &layer, &mut grads, &stamped(), other.view(), dy.view());
        grads.clear();
        let got = step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
        assert_eq!(got, want, "{variant}");
    }
}
on_every_device!(the_first_backward_after_clear_overwrites_everything => first_overwrites);

#[test]
fn after_clear_a_backward_of_the_experts_alone_leaves_no_old_gradient_of_the_gate() {
    let config = variants()[0].1;
    let layer: MoeLayer<_, f32> = layer(&HOST, &config);
    let mut runner = Runner::new(&HOST, &config, 4).expect("a runner");
    let mut grads = layer.grads().expect("gradients");
    let (x, dy) = (tokens(1, 4, WIDTH), tokens(2, 4, WIDTH));
    step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
    grads.clear();
    let mut saved = runner.saved(&config).expect("room");
    let (x, dy) = (runner.upload(x.view()).expect("x"), runner.upload(dy.view()).expect("dy"));
    let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
    runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
    runner.experts_backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
    assert!(grads.weights.gate.iter().all(|gradient| *gradient == 0.0), "{:?}", grads.weights.gate);
    assert!(grads.load.iter().all(|count| *count == 0), "{:?}", grads.load);
}
