//! Steps out of order, and values that belong to something else: refused with the reason, and nothing panics.

use crate::devices::HOST;
use crate::rig::{Setup, is_length, is_state};
use crate::step::layer;
use crate::variants::{EXPERTS, TOP_K, WIDTH, changed, plain};
use moe_core::{AdamW, Balance, BalanceLoss, Batch, Error, Limits, Runner};

#[test]
fn a_step_out_of_order_is_refused() {
    let mut setup = Setup::new(&plain());
    let (dy, mut dx) = (setup.rows(4, WIDTH), setup.rows(4, WIDTH));
    is_state(setup.backward(&dy, &mut dx), "forward_train");
    setup.runner.route(&setup.layer, &setup.x, &mut setup.saved).expect("routing");
    is_state(setup.backward(&dy, &mut dx), "forward_train");
    setup.train().expect("forward");
    setup.backward(&dy, &mut dx).expect("backward");
    is_state(setup.backward(&dy, &mut dx), "forward_train");
    let Setup { layer, runner, saved, x, y, .. } = &mut setup;
    is_state(runner.experts(layer, x, saved, y), "saved");
    runner.adopt(layer, x, &[0; 4 * TOP_K], &[0.5; 4 * TOP_K], saved).expect("another router's ids");
    runner.experts(layer, x, saved, y).expect("experts");
    is_state(setup.backward(&dy, &mut dx), "another router");
    setup.still_works();
}

#[test]
fn ids_and_weights_of_the_wrong_number_are_refused() {
    let mut setup = Setup::new(&plain());
    let Setup { layer, runner, saved, x, .. } = &mut setup;
    let slots = 4 * TOP_K;
    for wrong in [0, slots - 1, slots + 1] {
        let (ids, weights) = (vec![0; wrong], vec![0.5; wrong]);
        is_length(runner.replay(layer, x, &ids, saved), "source");
        is_length(runner.adopt(layer, x, &ids, &vec![0.5; slots], saved), "source");
        is_length(runner.adopt(layer, x, &vec![0; slots], &weights, saved), "source");
    }
    setup.still_works();
}

#[test]
fn values_for_another_layer_are_refused() {
    let mut setup = Setup::new(&plain());
    let other = changed(plain(), |c| c.expert_bias = true);
    let mut layer = layer::<f32, _>(&HOST, &other);
    is_state(setup.runner.route(&layer, &setup.x, &mut setup.saved), "another configuration");
    setup.train().expect("forward");
    let (dy, mut dx) = (setup.rows(4, WIDTH), setup.rows(4, WIDTH));
    let Setup { runner, saved, grads, x, .. } = &mut setup;
    is_state(runner.backward(&layer, x, saved, &dy, &mut dx, grads), "another configuration");
    let mut adam = AdamW::new(&setup.layer).expect("an optimizer");
    is_state(adam.step(&mut setup.runner, &mut setup.layer, &mut setup.grads, 0.1), "run backward");
    is_state(setup.runner.sum_squares(&setup.grads), "run backward");
    setup.still_works();
    is_state(adam.step(&mut setup.runner, &mut layer, &mut setup.grads, 0.1), "other sizes");
}

#[test]
fn a_runner_for_inference_does_not_train() {
    let mut setup = Setup::new(&plain());
    let mut runner = Runner::with_limits(&HOST, &plain(), Limits::inference(4)).expect("a runner");
    is_state(runner.saved(&plain()), "inference");
    is_state(runner.route(&setup.layer, &setup.x, &mut setup.saved), "inference");
    is_state(runner.dweights(&setup.saved), "inference");
    runner.forward(&setup.layer, &setup.x, &mut setup.y).expect("inference");
    setup.still_works();
    is_state(runner.sum_squares(&setup.grads), "inference");
}

#[test]
fn a_batch_that_does_not_fit_the_call_is_refused() {
    let mut setup = Setup::new(&plain());
    let base = Batch::default();
    let counts = [1; EXPERTS - 1];
    let batches = [
        ("add up", Batch { sequences: &[1, 2], ..base }),
        ("add up", Batch { sequences: &[usize::MAX, 5], ..base }),
        ("step_tokens", Batch { step_tokens: Some(3), ..base }),
        ("step_sequences", Batch { sequences: &[2, 2], step_sequences: Some(1), ..base }),
        ("step_counts", Batch { step_counts: Some(&counts), ..base }),
    ];
    for (word, batch) in batches {
        setup.runner.set_batch(&batch).expect("within the limits");
        is_state(setup.train(), word);
    }
    setup.still_works();
}

#[test]
fn batch_wise_balancing_in_a_pipeline_is_refused_with_the_reason() {
    let balance = Balance { loss: Some(BalanceLoss::Batch(0.1)), ..Balance::default() };
    let mut setup = Setup::new(&changed(plain(), |c| c.balance = balance));
    let pipelined = Batch { pipelined: true, ..Batch::default() };
    setup.runner.set_batch(&pipelined).expect("within the limits");
    match setup.train() {
        Err(Error::Config(error)) => {
            assert_eq!(error.field, "balance.loss");
            assert!(error.wanted.contains("step_counts"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let counts = [1; EXPERTS];
    setup.runner.set_batch(&Batch { step_counts: Some(&counts), ..pipelined }).expect("within the limits");
    setup.train().expect("the step's counts are given");
    setup.still_works();
}

#[test]
fn gradients_of_another_layer_leave_the_weights_usable() {
    let mut setup = Setup::new(&plain());
    let mut other = Setup::new(&changed(plain(), |c| c.experts = EXPERTS - 1));
    other.still_works();
    let mut adam = AdamW::new(&setup.layer).expect("an optimizer");
    let result = adam.step(&mut setup.runner, &mut setup.layer, &mut other.grads, 0.1);
    assert!(matches!(result, Err(Error::State(_) | Error::Shape(_))), "{result:?}");
    setup.still_works();
}
