//! What a layer is: sizes, router, experts, balancing. Checked as a whole before anything is allocated.

mod place;
mod presets;
mod tensors;
mod validate;

pub use place::{Axis, Part, Place};
pub use tensors::{TENSORS, TensorSpec};

use crate::error::ConfigError;
use crate::ops::{Activation, GateMath, RouteRule, ScoreFunction};

/// The four numbers of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// D: elements of a token
    pub width: usize,
    /// F: hidden width of an expert
    pub hidden: usize,
    /// E: routed experts
    pub experts: usize,
    /// K: experts per token
    pub top_k: usize,
}

/// Where the scores are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreOrder {
    /// to the experts' outputs
    AfterExperts,
    /// to the experts' inputs (Llama 4)
    BeforeExperts,
}

/// Experts that every token visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExperts {
    /// hidden width of all of them together
    pub hidden: usize,
    /// multiply their output with `sigmoid(gate x)` (Qwen2-MoE)
    pub gated: bool,
}

/// Which slots an expert gives up when more come than it has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPolicy {
    /// the last in the order of tokens
    ByPosition,
    /// those of lowest weight
    ByScore,
}

/// A bound on the rows of each expert: `ceil(factor * T * K / E)` for a call of T tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// room relative to perfect balance
    pub factor: f32,
    /// which slots are dropped
    pub drop: DropPolicy,
}

/// Auxiliary load-balancing loss `coefficient * sum over e of f[e] * P[e]` with `f = E / (K L) * count` and `P` the mean
/// probability (DeepSeek-V3, eqs 17-20).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BalanceLoss {
    /// per sequence, then the mean over the step's sequences
    Sequence(f32),
    /// over all tokens of the micro-batch, weighted by its share of the step's tokens. Not equal to one large
    /// batch.
    Batch(f32),
}

/// What keeps the experts' load even.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Balance {
    /// auxiliary loss
    pub loss: Option<BalanceLoss>,
    /// coefficient of the mean squared logsumexp (z-loss); 0 for none
    pub z_loss: f32,
    /// step of the selection bias (loss-free balancing); 0 for none. Needs `selection_bias`.
    pub bias_rate: f32,
}

/// What backward needs of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPolicy {
    /// h of every row is kept: (R, 2F) per micro-batch in flight
    Keep,
    /// h is computed again from x and the saved routing, which is never decided again
    Recompute,
}

/// A Mixture-of-Experts layer's description. Start from [`MoeConfig::new`] or a preset and set fields; every use validates
/// the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct MoeConfig {
    /// D
    pub width: usize,
    /// F
    pub hidden: usize,
    /// E
    pub experts: usize,
    /// K
    pub top_k: usize,
    /// between an expert's products; shared experts use it too
    pub activation: Activation,
    /// biases b13 and b2 of the routed experts
    pub expert_bias: bool,
    /// the router's rule
    pub rule: RouteRule,
    /// a bias on the gate's logits
    pub gate_bias: bool,
    /// a bias that takes part in selection only
    pub selection_bias: bool,
    /// where the scores are applied
    pub score_order: ScoreOrder,
    /// experts that every token visits
    pub shared: Option<SharedExperts>,
    /// a bound on each expert's rows; `None`: no slot is ever dropped for want of room
    pub capacity: Option<Capacity>,
    /// what keeps the load even
    pub balance: Balance,
    /// what backward needs of the forward pass
    pub memory: MemoryPolicy,
    /// the layer's number, part of what jitter depends on
    pub layer: u32,
    /// which part of the layer is here; all other fields describe the whole
    pub place: Place,
}

impl MoeConfig {
    /// SwiGLU experts behind a softmax router with normalised weights, dropless, without balancing.
    ///
    /// # Errors
    /// [`ConfigError`] with the field and its range.
    pub fn new(sizes: Sizes) -> Result<Self, ConfigError> {
        let config = Self::of(sizes);
        config.validate()?;
        Ok(config)
    }

    const fn of(sizes: Sizes) -> Self {
        Self {
            width: sizes.width,
            hidden: sizes.hidden,
            experts: sizes.experts,
            top_k: sizes.top_k,
            activation: Activation::SwiGlu,
            expert_bias: false,
            rule: RouteRule {
                score: ScoreFunction::Softmax,
                selection: crate::ops::Selection::TopK,
                groups: 1,
                groups_kept: 1,
                normalize: true,
                scale: 1.0,
                jitter: None,
                gate: GateMath::Exact,
            },
            gate_bias: false,
            selection_bias: false,
            score_order: ScoreOrder::AfterExperts,
            shared: None,
            capacity: None,
            balance: Balance { loss: None, z_loss: 0.0, bias_rate: 0.0 },
            memory: MemoryPolicy::Keep,
            layer: 0,
            place: Place::ALONE,
        }
    }

    /// Width of w13: 2F, or F for ungated experts.
    pub fn up_width(&self) -> usize {
        self.activation.up_width(self.hidden)
    }

    /// Parameters of the whole layer; a selection bias is not one.
    pub fn parameters(&self) -> usize {
        self.whole().tensors().iter().flatten().map(TensorSpec::len).sum()
    }

    /// Parameters of the whole layer that one token uses.
    pub fn active_parameters(&self) -> usize {
        let per_expert = |spec: &TensorSpec| match spec.name {
            "w13" | "b13" | "w2" | "b2" => spec.len() / self.experts.max(1) * self.top_k,
            _ => spec.len(),
        };
        self.whole().tensors().iter().flatten().map(per_expert).sum()
    }
}
