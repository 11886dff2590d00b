//! What a token's bits depend on: not on other tokens, not on threads, not on how tokens are split over calls.

use crate::devices::{HOST, cpu, cuda, on_every_device};
use crate::step::{Outcome, layer, stamped, step, tokens};
use crate::variants::{EXPERTS, TOP_K, WIDTH, changed, plain, variants};
use half::{bf16, f16};
use moe_core::ndarray::{Array2, s};
use moe_core::ops::{MoeDevice, Stamp};
use moe_core::{Accum, Balance, Batch, MoeConfig, Runner, Scalar, SharedExperts};

const TOKENS: usize = 9;

/// Variants in which tokens have nothing to do with each other: no losses, no bounds on experts.
fn uncoupled() -> impl Iterator<Item = (String, MoeConfig)> {
    let alone = |config: &MoeConfig| config.capacity.is_none() && config.balance == Balance::default();
    variants().into_iter().filter(move |(_, config)| alone(config))
}

fn rows_are_their_own<T: Scalar, D: MoeDevice<T>>(device: &D) {
    for (variant, config) in uncoupled() {
        let layer = layer::<T, D>(device, &config);
        let (x, dy) = (tokens::<T>(1, TOKENS, WIDTH), tokens::<T>(2, TOKENS, WIDTH));
        let all = step(&layer, &stamped(), x.view(), dy.view());
        for kept in [0, 4, TOKENS - 1] {
            let mut others: Array2<T> = tokens(3, TOKENS, WIDTH);
            others.row_mut(kept).assign(&x.row(kept));
            let mut strange = others.clone();
            strange.row_mut((kept + 1) % TOKENS).fill(T::narrow(T::Acc::of(f64::NAN)));
            for others in [others, strange] {
                let some = step(&layer, &stamped(), others.view(), dy.view());
                let row = kept * WIDTH..(kept + 1) * WIDTH;
                assert_eq!(some.y[row.clone()], all.y[row.clone()], "{variant}: row {kept} of y");
                assert_eq!(some.dx[row.clone()], all.dx[row], "{variant}: row {kept} of dx");
            }
        }
    }
}
on_every_device!(a_rows_bits_do_not_depend_on_other_rows => rows_are_their_own);

fn same<T: Scalar>(a: &Outcome<T>, b: &Outcome<T>, what: &str) {
    assert_eq!(a.ids, b.ids, "{what}: ids");
    assert_eq!(a.y, b.y, "{what}: y");
    assert_eq!(a.dx, b.dx, "{what}: dx");
    assert_eq!(a.grads, b.grads, "{what}: gradients");
    assert_eq!(a.load, b.load, "{what}: load");
}

fn threads_do_not_count<T: Scalar>()
where
    moe_cpu::Cpu: MoeDevice<T>,
{
    // Wide enough that work is split over threads.
    let sizes = changed(plain(), |c| {
        c.width = 72;
        c.hidden = 40;
    });
    let shared = Some(SharedExperts { hidden: 48, gated: true });
    for config in [
        sizes,
        changed(sizes, |c| {
            c.shared = shared;
            c.expert_bias = true;
            c.gate_bias = true;
        }),
    ] {
        let (x, dy) = (tokens::<T>(5, 150, 72), tokens::<T>(6, 150, 72));
        let on = |threads| step(&layer::<T, _>(&cpu(threads), &config), &stamped(), x.view(), dy.view());
        let one = on(1);
        for threads in [2, 3, 5] {
            same(&one, &on(threads), &format!("{threads} threads"));
        }
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    threads_do_not_count::<f32>();
    threads_do_not_count::<bf16>();
    threads_do_not_count::<f16>();
}

fn calls_do_not_count<T: Scalar, D: MoeDevice<T>>(device: &D) {
    let wide = changed(plain(), |c| (c.width, c.hidden, c.expert_bias) = (72, 40, true));
    let layers = uncoupled().chain([("wide".to_string(), wide)]);
    for (variant, config) in layers {
        let layer = layer::<T, D>(device, &config);
        let (x, dy) = (tokens::<T>(5, 70, config.width), tokens::<T>(6, 70, config.width));
        let all = step(&layer, &stamped(), x.view(), dy.view());
        let (mut y, mut dx) = (Vec::new(), Vec::new());
        for (from, to) in [(0, 1), (1, 40), (40, 70)] {
            let stamp = Stamp { first_token: 30 + from as u64, ..stamped().stamp };
            let batch = Batch { stamp, ..stamped() };
            let part = step(&layer, &batch, x.slice(s![from..to, ..]), dy.slice(s![from..to, ..]));
            y.extend(part.y);
            dx.extend(part.dx);
        }
        assert_eq!(y, all.y, "{variant}: y");
        assert_eq!(dx, all.dx, "{variant}: dx");
    }
}
on_every_device!(tokens_may_be_split_over_calls_without_changing_a_bit => calls_do_not_count);

/// Ids and the bits of logits and weights.
fn routing<T: Scalar, D: MoeDevice<T>>(
    device: &D,
    config: &MoeConfig,
    x: &Array2<T>,
    splits: &[usize],
) -> (Vec<T::Acc>, Vec<u32>, Vec<T::Acc>) {
    let layer = layer::<T, D>(device, config);
    let mut runner = Runner::new(device, config, x.nrows()).expect("a runner");
    let mut saved = runner.saved(config).expect("room");
    let (mut logits, mut ids, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for &end in splits.iter().chain([&x.nrows()]) {
        let stamp = Stamp { first_token: 30 + first as u64, ..stamped().stamp };
        runner.set_batch(&Batch { stamp, ..stamped() }).expect("a good batch");
        let part = runner.upload(x.slice(s![first..end, ..])).expect("x");
        runner.route(&layer, &part, &mut saved).expect("routing");
        let stream = runner.session().stream();
        let routing = saved.routing();
        logits.extend(crate::step::read::<T::Acc, D>(device, stream, routing.logits().expect("logits")));
        ids.extend(crate::step::read::<u32, D>(device, stream, routing.ids().expect("ids")));
        weights.extend(crate::step::read::<T::Acc, D>(device, stream, routing.weights().expect("weights")));
        first = end;
    }
    (logits, ids, weights)
}

fn routing_is_the_same_everywhere<T: Scalar>()
where
    moe_cpu::Cpu: MoeDevice<T>,
    moe_cuda::Cuda: MoeDevice<T>,
{
    let cuda = cuda("routing_has_the_same_bits_for_every_device_thread_count_and_split");
    for (variant, config) in variants() {
        let x = tokens::<T>(7, 23, WIDTH);
        let want = routing(&HOST, &config, &x, &[]);
        assert_eq!(want.1.len(), 23 * TOP_K);
        assert!(want.1.iter().all(|id| (*id as usize) < EXPERTS));
        for splits in [&[][..], &[1], &[0, 7, 8, 22]] {
            assert_eq!(
                routing(&HOST, &config, &x, splits),
                want,
                "{variant}: the reference, split at {splits:?}"
            );
            for threads in [1, 2, 3] {
                let got = routing(&cpu(threads), &config, &x, splits);
                assert_eq!(got, want, "{variant}: {threads} threads, split at {splits:?}");
            }
            if let Some(device) = cuda {
                let got = routing(device, &config, &x, splits);
                assert_eq!(got, want, "{variant}: cuda, split at {splits:?}");
            }
        }
    }
}

#[test]
fn routing_has_the_same_bits_for_every_device_thread_count_and_split() {
    routing_is_the_same_everywhere::<f32>();
    routing_is_the_same_everywhere::<bf16>();
    routing_is_the_same_everywhere::<f16>();
}
