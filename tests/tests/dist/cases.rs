//! Layers that every mesh has to run, each with both orders of scores, and with tokens replicated over tp and split.

use crate::layout::Shape;
use moe_core::ops::{Activation, Jitter, RouteRule, ScoreFunction, Selection};
use moe_core::{Balance, BalanceLoss, Capacity, DropPolicy, MemoryPolicy, MoeConfig, SharedExperts, Sizes};

/// A layer, and how it is run.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// the whole layer
    pub(crate) config: MoeConfig,
    pub(crate) shape: Shape,
    pub(crate) sequence_parallel: bool,
    pub(crate) padded: bool,
    /// no token chooses the first half of the experts
    pub(crate) idle: bool,
    /// micro-batches, all with the same tokens
    pub(crate) repeats: usize,
}

/// Case `name` with something changed.
pub(crate) fn case(name: &'static str, change: impl FnOnce(&mut Case)) -> Case {
    let config = MoeConfig::new(Sizes { width: 5, hidden: 8, experts: 8, top_k: 2 }).expect("a good layer");
    let mut case = Case {
        name,
        config,
        shape: Shape::Ragged,
        sequence_parallel: false,
        padded: false,
        idle: false,
        repeats: 1,
    };
    change(&mut case);
    case
}

const SHARED: Option<SharedExperts> = Some(SharedExperts { hidden: 8, gated: false });
const GATED: Option<SharedExperts> = Some(SharedExperts { hidden: 8, gated: true });
const BY_SEQUENCE: Option<BalanceLoss> = Some(BalanceLoss::Sequence(0.5));
const BY_BATCH: Option<BalanceLoss> = Some(BalanceLoss::Batch(0.5));

pub(crate) fn cases() -> Vec<Case> {
    let sigmoid = |rule: RouteRule| RouteRule { score: ScoreFunction::Sigmoid, scale: 2.5, ..rule };
    let capacity = |factor, drop| Some(Capacity { factor, drop });
    vec![
        case("plain", |_| {}),
        case("biases", |case| {
            (case.config.expert_bias, case.config.gate_bias) = (true, true);
        }),
        case("gated shared experts, sequence loss, z-loss", |case| {
            case.config.shared = GATED;
            case.config.balance = Balance { loss: BY_SEQUENCE, z_loss: 0.3, bias_rate: 0.0 };
        }),
        case("shared experts, batch loss, equal parts", |case| {
            case.config.shared = SHARED;
            case.config.balance.loss = BY_BATCH;
            case.shape = Shape::Even;
        }),
        case("clamped with biases, recomputed, padded", |case| {
            case.config.expert_bias = true;
            case.config.activation = Activation::ClampedSwiGlu { alpha: 1.702, limit: 0.4 };
            case.config.memory = MemoryPolicy::Recompute;
            case.padded = true;
        }),
        case("drops by position, gated shared experts, z-loss", |case| {
            case.config.capacity = capacity(0.7, DropPolicy::ByPosition);
            case.config.shared = GATED;
            case.config.balance.z_loss = 0.3;
        }),
        case("drops by score, padded", |case| {
            case.config.capacity = capacity(0.8, DropPolicy::ByScore);
            case.config.expert_bias = true;
            case.padded = true;
        }),
        case("three tokens, gated shared experts, all biases, sequence loss", |case| {
            case.config.shared = GATED;
            (case.config.expert_bias, case.config.gate_bias) = (true, true);
            case.config.balance.loss = BY_SEQUENCE;
            case.shape = Shape::Sparse;
        }),
        case("three tokens, shared experts, recomputed", |case| {
            case.config.shared = SHARED;
            case.config.memory = MemoryPolicy::Recompute;
            case.config.balance = Balance { loss: BY_BATCH, z_loss: 0.2, bias_rate: 0.0 };
            case.shape = Shape::Sparse;
        }),
        case("experts without tokens, batch loss, padded", |case| {
            case.config.gate_bias = true;
            case.config.balance.loss = BY_BATCH;
            (case.idle, case.padded) = (true, true);
        }),
        case("forced balance, jitter, biases, two micro-batches", |case| {
            case.config.rule = sigmoid(RouteRule {
                selection: Selection::RoundRobin,
                jitter: Some(Jitter { amplitude: 0.3 }),
                ..case.config.rule
            });
            case.config.expert_bias = true;
            case.config.balance.loss = BY_SEQUENCE;
            (case.shape, case.repeats) = (Shape::Even, 2);
        }),
        case("everything, two micro-batches", |case| {
            everything(&mut case.config);
            case.config.rule = sigmoid(case.config.rule);
            case.config.balance = Balance { loss: BY_SEQUENCE, z_loss: 0.1, bias_rate: 0.0 };
            case.repeats = 2;
        }),
        case("everything, ungated, two micro-batches", |case| {
            everything(&mut case.config);
            case.config.activation = Activation::Gelu;
            case.config.balance = Balance { loss: BY_BATCH, z_loss: 0.1, bias_rate: 0.0 };
            case.repeats = 2;
        }),
    ]
}

fn everything(config: &mut MoeConfig) {
    config.shared = GATED;
    (config.expert_bias, config.gate_bias, config.selection_bias) = (true, true, true);
}
