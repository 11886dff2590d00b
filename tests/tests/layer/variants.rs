//! Small layers, each with one thing that the others do not have.

use moe_core::ops::{Activation, Jitter, RouteRule, ScoreFunction};
use moe_core::{Balance, BalanceLoss, Capacity, DropPolicy, MoeConfig, ScoreOrder, SharedExperts, Sizes};

pub(crate) const EXPERTS: usize = 6;
pub(crate) const TOP_K: usize = 2;
pub(crate) const WIDTH: usize = 5;

/// The layer that all variants start from.
pub(crate) fn plain() -> MoeConfig {
    MoeConfig::new(Sizes { width: WIDTH, hidden: 3, experts: EXPERTS, top_k: TOP_K }).expect("a good layer")
}

/// A configuration with something changed.
pub(crate) fn changed(mut config: MoeConfig, change: impl FnOnce(&mut MoeConfig)) -> MoeConfig {
    change(&mut config);
    config
}

/// Every variant with its name, for both orders of the scores.
pub(crate) fn variants() -> Vec<(String, MoeConfig)> {
    let mut all = Vec::new();
    for order in [ScoreOrder::AfterExperts, ScoreOrder::BeforeExperts] {
        for (name, config) in one_order() {
            all.push((format!("{name}, {order:?}"), changed(config, |c| c.score_order = order)));
        }
    }
    all
}

fn one_order() -> Vec<(&'static str, MoeConfig)> {
    let base = plain();
    let rule = |rule: RouteRule| changed(base, |c| c.rule = rule);
    let balanced = |balance: Balance| changed(base, |c| c.balance = balance);
    let sequence = Balance { loss: Some(BalanceLoss::Sequence(0.5)), ..Balance::default() };
    let batch = Balance { loss: Some(BalanceLoss::Batch(0.5)), ..Balance::default() };
    let clamped = Activation::ClampedSwiGlu { alpha: 1.702, limit: 0.4 };
    let bounded = |drop| changed(base, |c| c.capacity = Some(Capacity { factor: 0.7, drop }));
    let sigmoid = RouteRule { score: ScoreFunction::Sigmoid, scale: 2.5, ..base.rule };
    vec![
        ("plain", base),
        ("softmax unnormalised", rule(RouteRule { normalize: false, ..base.rule })),
        ("softmax over the chosen", rule(RouteRule { score: ScoreFunction::SoftmaxTopK, ..base.rule })),
        ("sigmoid", rule(sigmoid)),
        ("sigmoid unnormalised", rule(RouteRule { normalize: false, ..sigmoid })),
        ("groups", rule(RouteRule { groups: 3, groups_kept: 2, ..sigmoid })),
        ("jitter", rule(RouteRule { jitter: Some(Jitter { amplitude: 0.5 }), ..base.rule })),
        ("gate bias", changed(base, |c| c.gate_bias = true)),
        ("selection bias", changed(base, |c| c.selection_bias = true)),
        ("expert biases", changed(base, |c| c.expert_bias = true)),
        (
            "clamped with biases",
            changed(base, |c| {
                c.expert_bias = true;
                c.activation = clamped;
            }),
        ),
        (
            "ungated",
            changed(base, |c| {
                c.expert_bias = true;
                c.activation = Activation::Gelu;
            }),
        ),
        ("shared", changed(base, |c| c.shared = Some(SharedExperts { hidden: 4, gated: false }))),
        ("shared with a gate", changed(base, |c| c.shared = Some(SharedExperts { hidden: 4, gated: true }))),
        ("drops by position", bounded(DropPolicy::ByPosition)),
        ("drops by score", bounded(DropPolicy::ByScore)),
        ("sequence loss", balanced(sequence)),
        ("batch loss", balanced(batch)),
        ("z-loss", balanced(Balance { z_loss: 0.3, ..sequence })),
        (
            "everything",
            changed(base, |c| {
                c.rule = RouteRule {
                    jitter: Some(Jitter { amplitude: 0.2 }),
                    groups: 2,
                    groups_kept: 2,
                    ..sigmoid
                };
                c.balance = Balance { z_loss: 0.1, bias_rate: 0.01, ..sequence };
                c.gate_bias = true;
                c.selection_bias = true;
                c.expert_bias = true;
                c.shared = Some(SharedExperts { hidden: 4, gated: true });
                c.capacity = Some(Capacity { factor: 0.8, drop: DropPolicy::ByScore });
            }),
        ),
    ]
}
