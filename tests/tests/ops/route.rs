//! Route: the K best with ties to the lower id, weights, odd logits, and splits of the tokens over calls.

use crate::run::{read, run, write};
use approx::assert_relative_eq;
use moe_core::ops::{
    Jitter, Route, RouteArgs, RouteDims, RouteRule, ScoreFunction, Selection, Stamp, Weight,
};
use moe_tests::Random;
use proptest::prelude::*;

const SCORES: [ScoreFunction; 3] =
    [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid];

#[derive(Clone, Debug, PartialEq)]
struct Routed {
    logits: Vec<u32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
    non_finite: u32,
}

fn route(dims: RouteDims, x: &[f32], gate: &[f32], stamp: Stamp) -> Routed {
    let slots = dims.tokens * dims.top_k;
    let mut logits = vec![0.0; dims.tokens * dims.experts];
    let (mut ids, mut weights, mut non_finite) = (vec![0; slots], vec![0.0; slots], 0);
    let words = stamp.words();
    let args = RouteArgs {
        x: read(x),
        gate: Weight::Plain(read(gate)),
        gate_bias: None,
        selection_bias: None,
        forced_ids: None,
        stamp: Some(read(&words)),
        logits: write(&mut logits),
        ids: write(&mut ids),
        weights: write(&mut weights),
        non_finite: write(std::slice::from_mut(&mut non_finite)),
    };
    run::<Route<f32>>(dims, args);
    Routed { logits: logits.iter().map(|logit| logit.to_bits()).collect(), ids, weights, non_finite }
}

/// Routes tokens whose logits are x itself.
fn route_logits(rule: RouteRule, top_k: usize, experts: usize, x: &[f32]) -> Routed {
    let mut gate = vec![0.0; experts * experts];
    (0..experts).for_each(|e| gate[e * experts + e] = 1.0);
    let dims = RouteDims { tokens: x.len() / experts, width: experts, experts, top_k, rule };
    route(dims, x, &gate, Stamp::default())
}

/// Experts, K, and logits on a grid so coarse that many are equal.
fn logits() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    (1_usize..12).prop_flat_map(|experts| {
        let grid = (-4_i8..4).prop_map(|n| f32::from(n) / 2.0);
        (Just(experts), 1..=experts, prop::collection::vec(grid, experts * 3))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_best_are_chosen_and_ties_go_to_the_lower_id((experts, top_k, logits) in logits()) {
        for score in SCORES {
            let rule = RouteRule { score, ..RouteRule::default() };
            let routed = route_logits(rule, top_k, experts, &logits);
            for (token, logits) in logits.chunks(experts).enumerate() {
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
                let want: Vec<u32> = order[..top_k].iter().map(|e| *e as u32).collect();
                prop_assert_eq!(&routed.ids[token * top_k..(token + 1) * top_k], &want[..]);
            }
        }
    }

    #[test]
    fn normalised_weights_add_up_to_the_scale((experts, top_k, logits) in logits()) {
        for score in SCORES {
            let rule = RouteRule { score, normalize: true, scale: 2.5, ..RouteRule::default() };
            let routed = route_logits(rule, top_k, experts, &logits);
            for weights in routed.weights.chunks(top_k) {
                assert_relative_eq!(weights.iter().sum::<f32>(), 2.5, max_relative = 1e-5);
            }
        }
    }

    #[test]
    fn only_experts_of_the_best_groups_are_chosen((_, _, logits) in logits(), kept in 1_usize..4) {
        let experts = 12;
        let logits: Vec<f32> = logits.iter().copied().cycle().take(experts * 2).collect();
        let rule = RouteRule { groups: 4, groups_kept: kept, ..RouteRule::default() };
        let routed = route_logits(rule, 3, experts, &logits);
        let mut groups: Vec<u32> = routed.ids[..3].iter().map(|id| id / 3).collect();
        groups.sort_unstable();
        groups.dedup();
        prop_assert!(groups.len() <= kept);
    }

    #[test]
    fn tokens_may_be_split_over_calls_anywhere(seed: u64, split in 0_usize..=9, first in 0_u64..1 << 40) {
        let (mut random, tokens, width, experts, top_k) = (Random::new(seed), 9, 6, 7, 3);
        let (x, gate) = (random.values::<f32>(tokens * width), random.values::<f32>(experts * width));
        let stamp = Stamp { seed: 3, step: 1, layer: 2, first_token: first };
        let jittered = RouteRule { jitter: Some(Jitter { amplitude: 0.4 }), ..RouteRule::default() };
        let counted = RouteRule { selection: Selection::RoundRobin, ..RouteRule::default() };
        for rule in [jittered, counted] {
            let part = |tokens: std::ops::Range<usize>| {
                let dims = RouteDims { tokens: tokens.len(), width, experts, top_k, rule };
                let stamp = Stamp { first_token: first + tokens.start as u64, ..stamp };
                route(dims, &x[tokens.start * width..tokens.end * width], &gate, stamp)
            };
            let (all, mut parts, last) = (part(0..tokens), part(0..split), part(split..tokens));
            parts.logits.extend(last.logits);
            parts.ids.extend(last.ids);
            parts.weights.extend(last.weights);
            prop_assert_eq!(&all, &parts);
        }
    }
}

#[test]
fn every_expert_for_every_token_is_a_permutation() {
    let routed = route_logits(RouteRule::default(), 4, 4, &[0.1, 0.4, 0.2, 0.3]);
    assert_eq!(routed.ids, [1, 3, 2, 0]);
}

#[test]
fn round_robin_counts_global_slots() {
    let rule = RouteRule { selection: Selection::RoundRobin, ..RouteRule::default() };
    let dims = RouteDims { tokens: 2, width: 1, experts: 5, top_k: 2, rule };
    let stamp = Stamp { first_token: 4, ..Stamp::default() };
    let routed = route(dims, &[1.0, 1.0], &[0.0; 5], stamp);
    assert_eq!(routed.ids, [3, 4, 0, 1]);
}

#[test]
fn an_infinite_logit_is_counted_and_a_nan_weight_never_leaves() {
    for score in SCORES {
        let rule = RouteRule { score, normalize: true, ..RouteRule::default() };
        let mut gate_logits = vec![0.5_f32; 8];
        gate_logits[3] = f32::INFINITY;
        let routed = route_logits(rule, 2, 8, &gate_logits);
        // The identity gate turns infinity times zero into NaN for the other experts.
        assert_eq!(routed.non_finite, 8, "{score:?}");
        for (id, weight) in routed.ids.iter().zip(&routed.weights) {
            assert!(*id < 8 || *weight == 0.0, "{score:?}: {routed:?}");
        }
    }
}
