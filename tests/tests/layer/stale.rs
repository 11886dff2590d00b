//! Weights change in one way only, are packed once per change, and a change that failed half way is never used.

use crate::devices::{HOST, cpu, on_every_device};
use crate::step::{layer, stamped, step_with, tokens};
use crate::variants::{WIDTH, changed, plain};
use moe_core::ops::{self, MoeDevice, PackWeights};
use moe_core::{AdamW, Error, MoeConfig, MoeLayer, Op, OpId, Runner, Scalar, SharedExperts, whole_mut};

fn config() -> MoeConfig {
    changed(plain(), |c| c.shared = Some(SharedExperts { hidden: 4, gated: true }))
}

fn a_fault_makes_stale<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let config = config();
    let mut layer = layer::<T, D>(device, &config);
    let mut runner = Runner::new(device, &config, 4).expect("a runner");
    let (mut grads, mut adam) =
        (layer.grads().expect("gradients"), AdamW::new(&layer).expect("an optimizer"));
    let (x, dy) = (tokens::<T>(1, 4, WIDTH), tokens::<T>(2, 4, WIDTH));
    step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
    let mut saved = runner.saved(&config).expect("room");
    let (rows, dy) = (runner.upload(x.view()).expect("x"), runner.upload(dy.view()).expect("dy"));
    let (mut y, mut dx) = (runner.like(&rows).expect("y"), runner.like(&rows).expect("dx"));
    runner.forward_train(&layer, &rows, &mut saved, &mut y).expect("a fresh layer");

    let id = ops::AdamW::<T>::ID;
    runner.session_mut().trace_mut().fail(id, 2);
    let error = adam.step(&mut runner, &mut layer, &mut grads, 0.1).expect_err("a fault was planned");
    assert!(matches!(error, Error::Injected(op) if op == id), "{error}");

    assert!(matches!(runner.forward(&layer, &rows, &mut y), Err(Error::Stale)));
    assert!(matches!(runner.route(&layer, &rows, &mut saved), Err(Error::Stale)));
    let backward = runner.backward(&layer, &rows, &mut saved, &dy, &mut dx, &mut grads);
    assert!(matches!(backward, Err(Error::Stale)));

    layer.update(&mut runner, |_, _| Ok(())).expect("an update without a fault");
    runner.forward(&layer, &rows, &mut y).expect("healed");
}
on_every_device!(after_a_fault_in_an_update_the_layer_is_stale_until_one_succeeds => a_fault_makes_stale);

#[test]
fn a_fault_while_packing_makes_the_layer_stale_too() {
    let (device, config) = (cpu(1), config());
    let mut layer: MoeLayer<_, f32> = layer(&device, &config);
    let mut runner = Runner::new(&device, &config, 4).expect("a runner");
    runner.session_mut().trace_mut().fail(PackWeights::<f32>::ID, 1);
    let result = layer.update(&mut runner, |_, _| Ok(()));
    assert!(matches!(result, Err(Error::Injected(_))));
    let x = runner.rows(2, WIDTH).expect("x");
    let mut y = runner.like(&x).expect("y");
    assert!(matches!(runner.forward(&layer, &x, &mut y), Err(Error::Stale)));
    assert!(matches!(layer.into_inference(), Err(Error::Stale)));
}

#[test]
fn an_error_of_the_closure_comes_back_and_leaves_the_layer_stale() {
    let mut layer: MoeLayer<_, f32> = layer(&HOST, &config());
    let mut runner = Runner::new(&HOST, &config(), 4).expect("a runner");
    let result: Result<(), _> = layer.update(&mut runner, |_, _| Err(Error::State("no")));
    assert!(matches!(result, Err(Error::State("no"))));
    assert!(matches!(layer.into_inference(), Err(Error::Stale)));
}

#[test]
fn unchanged_weights_are_packed_once() {
    let (device, config) = (cpu(1), config());
    let mut layer: MoeLayer<_, f32> = layer(&device, &config);
    let mut runner = Runner::new(&device, &config, 4).expect("a runner");
    let (mut grads, mut adam) =
        (layer.grads().expect("gradients"), AdamW::new(&layer).expect("an optimizer"));
    let (x, dy) = (tokens(1, 4, WIDTH), tokens(2, 4, WIDTH));
    let packed = |runner: &Runner<_, f32>| runner.trace().launches(PackWeights::<f32>::ID);
    for _ in 0..3 {
        step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
    }
    assert_eq!(packed(&runner), 0, "init has packed them");
    adam.step(&mut runner, &mut layer, &mut grads, 0.1).expect("a step");
    let once = packed(&runner);
    assert!(once > 0, "new weights are packed");
    for _ in 0..3 {
        step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
    }
    assert_eq!(packed(&runner), once);
}

fn changed_weights_are_used<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let config = config();
    let mut changed = layer::<T, D>(device, &config);
    let mut runner = Runner::new(device, &config, 4).expect("a runner");
    let x = runner.upload(tokens::<T>(1, 4, WIDTH).view()).expect("x");
    let mut y = runner.like(&x).expect("y");
    let zeros = vec![T::default(); plain().experts * config.up_width() * WIDTH];
    let update = changed.update(&mut runner, |weights, session| {
        session.upload(&zeros, whole_mut::<D, T>(&mut weights.w13))?;
        let shared = weights.shared.as_mut().ok_or(Error::State("no shared experts"))?;
        session.upload(&zeros[..2 * 4 * WIDTH], whole_mut::<D, T>(&mut shared.w13))
    });
    update.expect("an update without a fault");
    runner.forward(&changed, &x, &mut y).expect("a fresh layer");
    let y = runner.download(&y).expect("y");
    assert!(y.iter().all(|y| *y == T::default()), "experts without an up-projection give 0");
}
on_every_device!(an_update_reaches_every_packed_form => changed_weights_are_used);

fn inference_only<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let config = config();
    let trained = layer::<T, D>(device, &config);
    let mut runner = Runner::new(device, &config, 4).expect("a runner");
    let x = runner.upload(tokens::<T>(1, 4, WIDTH).view()).expect("x");
    let (mut before, mut after) = (runner.like(&x).expect("y"), runner.like(&x).expect("y"));
    runner.forward(&trained, &x, &mut before).expect("forward");
    let mut served = trained.into_inference().expect("a fresh layer");
    runner.forward(&served, &x, &mut after).expect("forward");
    let (before, after) = (runner.download(&before).expect("y"), runner.download(&after).expect("y"));
    assert_eq!(before, after);
    let mut saved = runner.saved(&config).expect("room");
    let refused = |result: Result<(), Error<D::Error>>| assert!(matches!(result, Err(Error::State(_))));
    refused(served.update(&mut runner, |_, _| Ok(())));
    refused(served.weights().map(|_| ()));
    refused(served.state().map(|_| ()));
    refused(runner.route(&served, &x, &mut saved));
    refused(AdamW::new(&served).map(|_| ()));
}
on_every_device!(a_layer_made_for_inference_runs_forward_alone => inference_only);

#[test]
fn the_planned_fault_comes_once_and_at_its_op_alone() {
    let (config, other) = (plain(), OpId("no such op"));
    let layer: MoeLayer<_, f32> = layer(&HOST, &config);
    let mut runner = Runner::new(&HOST, &config, 4).expect("a runner");
    let x = runner.rows(2, WIDTH).expect("x");
    let mut y = runner.like(&x).expect("y");
    runner.session_mut().trace_mut().fail(other, 0);
    runner.forward(&layer, &x, &mut y).expect("another op's fault");
    runner.session_mut().trace_mut().fail(ops::Combine::<f32>::ID, 0);
    assert!(matches!(runner.forward(&layer, &x, &mut y), Err(Error::Injected(_))));
    runner.forward(&layer, &x, &mut y).expect("the fault is over");
}
