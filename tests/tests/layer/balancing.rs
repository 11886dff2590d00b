//! Balancing: what changes counts and biases, what does not, and that no slot is lost.

use crate::devices::{HOST, on_every_device};
use crate::step::{layer, read, stamped, step, step_in, step_with, tokens};
use crate::variants::{EXPERTS, TOP_K, WIDTH, changed, plain, variants};
use moe_core::ndarray::Array2;
use moe_core::ops::{Jitter, MoeDevice, RouteRule, ScoreFunction, Selection, Stamp};
use moe_core::{
    Accum, AdamW, Balance, BalanceLoss, Batch, Capacity, DropPolicy, MoeConfig, MoeLayer, Runner, Scalar,
    StateTensor, whole,
};

fn biased() -> MoeConfig {
    changed(plain(), |c| {
        c.selection_bias = true;
        c.balance = Balance { bias_rate: 0.05, ..Balance::default() };
    })
}

fn bias(state: &[StateTensor]) -> &[u8] {
    &state.iter().find(|tensor| tensor.name == "selection_bias").expect("it has one").bytes
}

fn evaluation_is_silent<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let config = biased();
    let layer = layer::<T, D>(device, &config);
    let mut runner = Runner::new(device, &config, 9).expect("a runner");
    let (x, dy) = (tokens::<T>(1, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
    let want = step(&layer, &stamped(), x.view(), dy.view());
    let before = layer.state().expect("a state");

    let (mut saved, mut grads) = (runner.saved(&config).expect("room"), layer.grads().expect("gradients"));
    runner.set_batch(&stamped()).expect("a good batch");
    let other = runner.upload(tokens::<T>(3, 7, WIDTH).view()).expect("other tokens");
    let mut scores = runner.like(&other).expect("room");
    let (x, dy) = (runner.upload(x.view()).expect("x"), runner.upload(dy.view()).expect("dy"));
    let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
    let mut evaluate =
        |runner: &mut Runner<D, T>| runner.forward(&layer, &other, &mut scores).expect("forward");
    evaluate(&mut runner);
    runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
    evaluate(&mut runner);
    assert_eq!(runner.figures(&saved).expect("figures"), want.figures);
    runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward");
    evaluate(&mut runner);

    let stream = runner.session().stream();
    assert_eq!(read::<u32, D>(device, stream, whole::<D, u32>(&grads.load)), want.load);
    assert_eq!(read::<T, D>(device, stream, dx.view()), want.dx);
    assert_eq!(layer.state().expect("a state"), before);
}
on_every_device!(evaluation_changes_neither_counts_nor_balancing_nor_gradients => evaluation_is_silent);

/// What a step reads besides its tokens is uploaded only when it changes: each of these changes one thing.
fn follows_the_batch<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let counts = [[3, 0, 5, 4, 4, 2], [1, 2, 3, 4, 5, 3]];
    let stamp = Stamp { step: 3, ..stamped().stamp };
    let losses = [BalanceLoss::Sequence(0.5), BalanceLoss::Batch(0.5)];
    for loss in losses {
        let config = changed(plain(), |c| {
            c.balance = Balance { loss: Some(loss), z_loss: 0.1, bias_rate: 0.0 };
            c.rule.jitter = Some(Jitter { amplitude: 0.5 });
        });
        let layer = layer::<T, D>(device, &config);
        let mut runner = Runner::new(device, &config, 9).expect("a runner");
        let mut saved = runner.saved(&config).expect("room");
        let mut batches = vec![
            (9, stamped()),
            (9, Batch { sequences: &[4, 5], ..stamped() }),
            (9, Batch { sequences: &[5, 4], ..stamped() }),
            (9, Batch { sequences: &[5, 4], step_sequences: Some(8), ..stamped() }),
            (9, Batch { step_tokens: Some(50), ..stamped() }),
            (7, Batch { step_tokens: Some(50), ..stamped() }),
            (7, Batch { step_tokens: Some(50), stamp, ..stamped() }),
        ];
        batches.extend(counts.iter().map(|counts| (7, Batch { step_counts: Some(counts), ..stamped() })));
        for (at, (count, batch)) in batches.iter().enumerate() {
            let (x, dy) = (tokens::<T>(1, *count, WIDTH), tokens::<T>(2, *count, WIDTH));
            let mut grads = layer.grads().expect("gradients");
            let got = step_in(&mut runner, &layer, &mut saved, &mut grads, batch, x.view(), dy.view());
            assert_eq!(got, step(&layer, batch, x.view(), dy.view()), "{loss:?}, batch {at}");
        }
    }
}
on_every_device!(a_step_goes_by_its_own_batch_and_not_by_the_one_before => follows_the_batch);

fn moves_once<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let config = biased();
    let mut layer = layer::<T, D>(device, &config);
    let mut runner = Runner::new(device, &config, 9).expect("a runner");
    let (mut grads, mut adam) =
        (layer.grads().expect("gradients"), AdamW::new(&layer).expect("an optimizer"));
    let old: Vec<T::Acc> = bytemuck::pod_collect_to_vec(bias(&layer.state().expect("a state")));
    for seed in 0..3 {
        let (x, dy) = (tokens::<T>(seed, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
        step_with(&mut runner, &layer, &mut grads, &stamped(), x.view(), dy.view());
    }
    let load = read::<u32, D>(device, runner.session().stream(), whole::<D, u32>(&grads.load));
    assert_eq!(load.iter().sum::<u32>() as usize, 3 * 9 * TOP_K, "the load is that of all micro-batches");
    adam.step(&mut runner, &mut layer, &mut grads, 0.0).expect("a step");
    runner.session().sync().expect("no fault");
    let new: Vec<T::Acc> = bytemuck::pod_collect_to_vec(bias(&layer.state().expect("a state")));
    let mean = load.iter().sum::<u32>() as f64 / EXPERTS as f64;
    let signs =
        load.iter().map(|count| (mean - f64::from(*count)).partial_cmp(&0.0).map_or(0.0, |o| o as i8 as f64));
    let signs: Vec<f64> = signs.collect();
    let centre = signs.iter().sum::<f64>() / EXPERTS as f64;
    for ((old, new), sign) in old.iter().zip(&new).zip(signs) {
        let want = old.to_f64() + 0.05 * (sign - centre);
        assert!((new.to_f64() - want).abs() < 1e-6, "{want} {}", new.to_f64());
    }
}
on_every_device!(the_bias_moves_once_per_step_by_the_load_of_all_micro_batches => moves_once);

fn nothing_is_lost<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for (variant, config) in variants() {
        for count in [0, 1, 9] {
            let layer = layer::<T, D>(device, &config);
            let (x, dy) = (tokens::<T>(1, count, WIDTH), tokens::<T>(2, count, WIDTH));
            let outcome = step(&layer, &stamped(), x.view(), dy.view());
            let figures = outcome.figures;
            assert_eq!(figures.routed + figures.dropped, (count * TOP_K) as u64, "{variant}, {count} tokens");
            let counted: u32 = figures.tokens_per_expert.iter().sum();
            assert_eq!(counted as usize, count * TOP_K, "{variant}: counts are taken before drops");
            assert_eq!(outcome.load, figures.tokens_per_expert, "{variant}");
        }
    }
}
on_every_device!(routed_and_dropped_slots_add_up => nothing_is_lost);

fn one_expert_has_all<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let config = changed(plain(), |c| {
        c.gate_bias = true;
        c.top_k = 1;
    });
    let mut state = layer::<T, D>(device, &config).state().expect("a state");
    let mut biases = vec![T::default(); EXPERTS];
    biases[4] = T::narrow(T::Acc::of(100.0));
    crate::step::tensor(&mut state, "gate_bias").bytes = bytemuck::cast_slice(&biases).to_vec();
    let layer = MoeLayer::<D, T>::from_state(device, &config, state).expect("a state");
    let (x, dy) = (tokens::<T>(1, 9, WIDTH), tokens::<T>(2, 9, WIDTH));
    let outcome = step(&layer, &stamped(), x.view(), dy.view());
    assert_eq!(outcome.load, [0, 0, 0, 0, 9, 0]);
    assert_eq!(outcome.figures.max_violation, 5.0);
    assert_eq!(outcome.figures.load_entropy, 0.0);
    let (_, w2) = outcome.grads.iter().find(|(name, _)| *name == "w2").expect("a gradient");
    let per_expert = w2.len() / EXPERTS;
    for (expert, gradient) in w2.chunks(per_expert).enumerate() {
        let zero = gradient.iter().all(|g| *g == T::Acc::ZERO);
        assert_eq!(zero, expert != 4, "expert {expert}");
    }
}
on_every_device!(one_expert_may_have_all_tokens_and_the_others_none => one_expert_has_all);

fn odd_tokens<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for score in [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid] {
        let config = changed(plain(), |c| c.rule = RouteRule { score, ..plain().rule });
        let layer = layer::<T, D>(device, &config);
        let mut x: Array2<T> = tokens(1, 4, WIDTH);
        x.row_mut(2).fill(T::narrow(T::Acc::of(f64::NAN)));
        let outcome = step(&layer, &stamped(), x.view(), tokens(2, 4, WIDTH).view());
        assert_eq!(outcome.figures.non_finite, EXPERTS as u64, "{score:?}");
        assert_eq!(outcome.figures.dropped, TOP_K as u64, "{score:?}");
        assert_eq!(outcome.ids[2 * TOP_K..3 * TOP_K], [EXPERTS as u32; TOP_K], "{score:?}");
        let row = &outcome.y[2 * WIDTH..3 * WIDTH];
        assert!(row.iter().all(|y| *y == T::default()), "{score:?}: a token without experts gives 0");
        assert!(outcome.y.iter().all(|y| y.widen().finite()), "{score:?}");
    }
}
on_every_device!(a_token_of_nan_is_dropped_and_counted => odd_tokens);

#[test]
fn a_capacity_keeps_the_first_or_the_heaviest() {
    let config = |drop| {
        changed(plain(), |c| {
            c.gate_bias = true;
            c.top_k = 1;
            c.rule = RouteRule { normalize: false, ..plain().rule };
            c.capacity = Some(Capacity { factor: 1.0, drop });
        })
    };
    let rows = |drop| {
        let layer: MoeLayer<_, f64> = layer(&HOST, &config(drop));
        let outcome = step(&layer, &stamped(), tokens(1, 60, WIDTH).view(), tokens(2, 60, WIDTH).view());
        let fits =
            outcome.figures.tokens_per_expert.iter().map(|count| u64::from(*count).min(10)).sum::<u64>();
        assert_eq!(outcome.figures.routed, fits, "ceil(1.0 * 60 / 6) = 10 rows per expert");
        let zero = |token: &usize| outcome.y[token * WIDTH..(token + 1) * WIDTH].iter().all(|y| *y == 0.0);
        (0..60).filter(zero).collect::<Vec<usize>>()
    };
    let (last, lightest) = (rows(DropPolicy::ByPosition), rows(DropPolicy::ByScore));
    assert!(!last.is_empty() && last.len() == lightest.len() && last != lightest);
}

#[test]
fn forced_balance_gives_every_expert_the_same_load() {
    let rule = RouteRule { selection: Selection::RoundRobin, ..plain().rule };
    let layer: MoeLayer<_, f32> = layer(&HOST, &changed(plain(), |c| c.rule = rule));
    let outcome = step(&layer, &stamped(), tokens(1, 9, WIDTH).view(), tokens(2, 9, WIDTH).view());
    assert_eq!(outcome.load, [3; EXPERTS]);
    assert_eq!((outcome.figures.max_violation, outcome.figures.dropped), (0.0, 0));
    assert!((outcome.figures.load_entropy - 1.0).abs() < 1e-12);
}
