//! Samples of Route. All of it must have the reference's bits, except with the native gate. Sums of small whole numbers are
//! exact in any order, and so are its logits, ids and weights; with other numbers its logits may differ a little, and ids are given.

use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{
    GateMath, Jitter, Route, RouteArgs, RouteDims, RouteRule, STAMP, ScoreFunction, Selection, Stamp,
};
use moe_core::{Accum, Device, Scalar};

pub(super) const SCORES: [ScoreFunction; 3] =
    [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid];

/// A step far into a run, so that high words count.
pub(super) fn stamp() -> [u32; STAMP] {
    Stamp { seed: 0x1234_5678_9abc_def0, step: 77, layer: 3, first_token: (1 << 33) + 5 }.words()
}

impl<T: Scalar> Case for Route<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut all = settings(random);
        all.extend(sizes(random));
        all.extend(odd_values(random));
        all.extend(native(random));
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> RouteArgs<'a, D, T> {
        RouteArgs {
            x: views.read("x"),
            gate: views.weight("gate"),
            gate_bias: views.read_if("gate_bias"),
            selection_bias: views.read_if("selection_bias"),
            forced_ids: views.read_if("forced_ids"),
            stamp: views.read_if("stamp"),
            logits: views.write("logits"),
            ids: views.write("ids"),
            weights: views.write("weights"),
            non_finite: views.write("non_finite"),
        }
    }
}

/// Random tokens and gate.
fn plain<T: Scalar>(random: &mut Random, label: &str, dims: RouteDims) -> Sample<Route<T>> {
    let x = random.values::<T>(dims.tokens * dims.width);
    let gate = random.values::<T>(dims.experts * dims.width);
    sample(format!("{label}, {:?}", dims.rule.score), dims, x, gate)
}

fn sample<T: Scalar>(label: String, dims: RouteDims, x: Vec<T>, gate: Vec<T>) -> Sample<Route<T>> {
    near(Tolerance::EXACT, label, dims, x, gate)
}

/// Logits and weights may differ by as much as `tolerance`.
fn near<T: Scalar>(
    tolerance: Tolerance,
    label: String,
    dims: RouteDims,
    x: Vec<T>,
    gate: Vec<T>,
) -> Sample<Route<T>> {
    let (logits, slots) = (dims.tokens * dims.experts, dims.tokens * dims.top_k);
    Sample::new(label, dims)
        .input("x", x)
        .weight("gate", gate, dims.pack())
        .output::<T::Acc>("logits", logits, tolerance)
        .output::<u32>("ids", slots, Tolerance::EXACT)
        .output::<T::Acc>("weights", slots, tolerance)
        .output::<u32>("non_finite", 1, Tolerance::EXACT)
}

/// Every score function with every other setting and optional argument.
fn settings<T: Scalar>(random: &mut Random) -> Vec<Sample<Route<T>>> {
    let mut all = Vec::new();
    for score in SCORES {
        for bits in 0..32 {
            let on = |bit: usize| bits >> bit & 1 == 1;
            let rule = RouteRule {
                score,
                normalize: on(0),
                scale: if on(1) { 2.446 } else { 1.0 },
                groups: if on(2) { 4 } else { 1 },
                groups_kept: if on(2) { 2 } else { 1 },
                ..RouteRule::default()
            };
            let dims = RouteDims { tokens: 11, width: 19, experts: 12, top_k: 3, rule };
            let label = if on(2) { "settings, groups" } else { "settings" };
            let sample = plain(random, label, dims)
                .maybe("gate_bias", on(3).then(|| random.values::<T>(12)))
                .maybe("selection_bias", on(4).then(|| random.values::<T::Acc>(12)));
            all.push(sample);
        }
        let base = RouteDims {
            tokens: 11,
            width: 19,
            experts: 12,
            top_k: 3,
            rule: RouteRule { score, normalize: true, ..RouteRule::default() },
        };
        let mut forced = random.ids(11, 3, 12);
        (forced[2], forced[9]) = (12, u32::MAX);
        forced[12..15].fill(13);
        all.push(plain(random, "forced ids, some out of range", base).input("forced_ids", forced));
        let mut counted = base;
        counted.rule.selection = Selection::RoundRobin;
        all.push(plain(random, "round robin", counted).input("stamp", stamp().to_vec()));
        for amplitude in [0.01, 1.0] {
            let mut jittered = base;
            jittered.rule.jitter = Some(Jitter { amplitude });
            all.push(plain(random, "jitter", jittered).input("stamp", stamp().to_vec()));
        }
    }
    all
}

/// Every score function at every size.
fn sizes<T: Scalar>(random: &mut Random) -> Vec<Sample<Route<T>>> {
    // label, tokens, width, experts, top_k, groups, groups kept
    let sizes = [
        ("no tokens", 0, 8, 4, 2, 1, 1),
        ("one token", 1, 24, 8, 2, 1, 1),
        ("one expert", 7, 5, 1, 1, 1, 1),
        ("every expert chosen", 6, 16, 5, 5, 1, 1),
        ("width of one", 9, 1, 6, 2, 1, 1),
        ("one expert per token", 70, 33, 16, 1, 1, 1),
        ("experts beyond the 32 partial sums", 5, 12, 33, 4, 1, 1),
        ("many experts in groups", 6, 40, 256, 8, 8, 4),
        ("groups of one expert", 6, 8, 10, 3, 10, 5),
        ("all groups kept", 6, 8, 12, 3, 3, 3),
        ("one group kept", 9, 8, 12, 4, 3, 1),
        ("many tokens", 150, 100, 20, 6, 1, 1),
    ];
    let mut all = Vec::new();
    for (label, tokens, width, experts, top_k, groups, groups_kept) in sizes {
        for score in SCORES {
            let rule = RouteRule { score, groups, groups_kept, normalize: top_k > 2, ..RouteRule::default() };
            let dims = RouteDims { tokens, width, experts, top_k, rule };
            all.push(plain(random, label, dims));
        }
    }
    all
}

/// Ties, infinities, NaN, very large and very small logits. Zero tokens leave the gate's bias as the logits.
fn odd_values<T: Scalar>(random: &mut Random) -> Vec<Sample<Route<T>>> {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let rows: [(&str, [f64; 8]); 12] = [
        ("equal logits", [0.5; 8]),
        ("zeros of both signs", [0.0, -0.0, 0.0, -0.0, -1.0, 0.0, -0.0, -2.0]),
        ("pairs of equal logits", [1.0, 2.0, 1.0, 2.0, 0.0, 2.0, 0.0, 1.0]),
        ("a NaN logit", [0.1, nan, 0.3, 0.9, -0.4, 0.0, 0.7, 0.2]),
        ("few numbers", [nan, nan, nan, 0.9, nan, nan, 0.7, nan]),
        ("only NaN", [nan; 8]),
        ("an infinite logit", [0.1, 0.2, inf, 0.9, -0.4, 0.0, 0.7, 0.2]),
        ("two infinite logits", [0.1, inf, 0.3, inf, -0.4, 0.0, 0.7, 0.2]),
        ("minus infinities", [-inf, 0.1, -inf, 0.9, -inf, -inf, -inf, -inf]),
        ("only minus infinity", [-inf; 8]),
        ("large logits", [1e4, -1e4, 300.0, 88.8, 9.9e3, -88.8, 0.0, 200.0]),
        ("saturated logits", [-104.0, -90.0, -200.0, -103.0, -88.0, -120.0, -99.0, -95.0]),
    ];
    let mut all = Vec::new();
    for (label, row) in rows {
        for score in SCORES {
            for groups in [1, 4] {
                let rule = RouteRule {
                    score,
                    groups,
                    groups_kept: 1.max(groups / 2),
                    normalize: groups == 1,
                    ..RouteRule::default()
                };
                let dims = RouteDims { tokens: 3, width: 4, experts: 8, top_k: 4, rule };
                let mut x = vec![T::default(); 12];
                x[4..8].copy_from_slice(&random.values::<T>(4));
                let bias = row.map(|logit| T::narrow(T::Acc::of(logit)));
                let gate = random.values::<T>(32);
                let sample = sample(format!("{label}, {score:?}"), dims, x, gate);
                all.push(sample.input("gate_bias", bias.to_vec()));
            }
        }
    }
    let dims = RouteDims { tokens: 9, width: 16, experts: 8, top_k: 2, rule: RouteRule::default() };
    for (label, scale) in [("tiny logits", 1e-38), ("huge tokens", 3e4)] {
        let (x, gate) = (random.scaled::<T>(9 * 16, scale), random.scaled::<T>(8 * 16, 0.01));
        all.push(sample(label.into(), dims, x, gate));
    }
    let mut x = random.values::<T>(9 * 16);
    (x[5], x[40]) = (T::narrow(T::Acc::of(nan)), T::narrow(T::Acc::of(inf)));
    all.push(sample("NaN and infinity in tokens".into(), dims, x, random.values::<T>(8 * 16)));
    let bias = [nan, 3.0, 3.0, -inf, inf, -3.0, 0.0, nan].map(T::Acc::of).to_vec();
    all.push(plain(random, "odd selection bias", dims).input("selection_bias", bias));
    all
}

/// The native gate: parts of tiles, several tiles of tokens and of experts, depths of few stages and of many.
fn native<T: Scalar>(random: &mut Random) -> Vec<Sample<Route<T>>> {
    // tokens, width, experts, top_k
    let sizes = [
        (0, 8, 4, 2),
        (1, 1040, 8, 2),
        (9, 19, 12, 3),
        (64, 128, 32, 4),
        (70, 392, 40, 4),
        (130, 72, 128, 8),
        (65, 200, 131, 6),
        (129, 264, 256, 8),
    ];
    let mut all = Vec::new();
    for (at, (tokens, width, experts, top_k)) in sizes.into_iter().enumerate() {
        let rule = RouteRule { score: SCORES[at % 3], gate: GateMath::Native, ..RouteRule::default() };
        let mut dims = RouteDims { tokens, width, experts, top_k, rule };
        let mut whole = |len: usize| -> Vec<T> {
            (0..len).map(|_| T::narrow(T::Acc::of(random.below(7) as f64 - 3.0))).collect()
        };
        let (x, gate, bias) = (whole(tokens * width), whole(experts * width), whole(experts));
        all.push(sample("native, whole numbers".into(), dims, x.clone(), gate.clone()));
        let biased = sample("native, whole numbers and a bias".into(), dims, x, gate);
        all.push(biased.input("gate_bias", bias));

        dims.rule.normalize = true;
        let (x, gate) = (random.values::<T>(tokens * width), random.values::<T>(experts * width));
        let given = near(Tolerance::stored::<T>(), "native, given ids".into(), dims, x, gate);
        let given = given.input("forced_ids", random.ids(tokens, top_k, experts));
        all.push(given.input("gate_bias", random.values::<T>(experts)));
    }
    let rule = RouteRule { gate: GateMath::Native, ..RouteRule::default() };
    let dims = RouteDims { tokens: 70, width: 64, experts: 16, top_k: 2, rule };
    let (mut x, gate) = (vec![T::default(); 70 * 64], vec![T::narrow(T::Acc::ONE); 16 * 64]);
    (x[5], x[64], x[4000]) = (
        T::narrow(T::Acc::of(f64::NAN)),
        T::narrow(T::Acc::of(f64::INFINITY)),
        T::narrow(T::Acc::of(f64::NEG_INFINITY)),
    );
    all.push(sample("native, NaN and infinities in tokens".into(), dims, x, gate));
    all
}
