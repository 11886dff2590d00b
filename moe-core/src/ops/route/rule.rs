//! The fixed settings of a router.

use super::choose::scores;
use crate::error::{OpId, ShapeError, expect, within};
use crate::ops::Jitter;
use crate::scalar::Accum;

/// How a logit becomes a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScoreFunction {
    /// softmax over all experts (Switch, Mixtral, Qwen)
    Softmax,
    /// selection by logit, then softmax over the K chosen logits (gpt-oss)
    SoftmaxTopK,
    /// each expert's own sigmoid (DeepSeek-V3, Llama 4)
    Sigmoid,
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// by choice score
    TopK,
    /// global slot i goes to expert i mod E, for measurements at perfect balance
    RoundRobin,
}

/// How the gate's logits are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GateMath {
    /// one chain of fused steps per logit: the same ids on every device
    #[default]
    Exact,
    /// the device's fastest product of x and gate with sums in the accumulation type. Repeatable on one device, but
    /// logits, and so ids, may differ between devices. `Host` and `Cpu` have none that is faster and stay exact; a device may
    /// for some types and sizes, and says so in its path.
    Native,
}

/// The fixed settings of a router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteRule {
    /// logit to score
    pub score: ScoreFunction,
    /// how experts are chosen
    pub selection: Selection,
    /// expert groups; 1 for none. Divides E.
    pub groups: usize,
    /// groups that a token may use, at most `groups`
    pub groups_kept: usize,
    /// divide the K weights by their sum + 1e-20. Softmax over the chosen logits has the sum 1 anyway.
    pub normalize: bool,
    /// factor on the weights, last
    pub scale: f32,
    /// noise on the router's input
    pub jitter: Option<Jitter>,
    /// how the logits are computed
    pub gate: GateMath,
}

impl Default for RouteRule {
    fn default() -> Self {
        Self {
            score: ScoreFunction::Softmax,
            selection: Selection::TopK,
            groups: 1,
            groups_kept: 1,
            normalize: false,
            scale: 1.0,
            jitter: None,
            gate: GateMath::Exact,
        }
    }
}

impl RouteRule {
    /// Whether the router reads the [`Stamp`](crate::ops::Stamp) of a step, if no ids are given.
    pub fn stamped(&self) -> bool {
        self.jitter.is_some() || self.selection == Selection::RoundRobin
    }
}

/// Scores of whole logits, and nothing else: what the losses and a router's tests compare.
impl RouteRule {
    /// The scores (tokens, experts) of logits (tokens, experts). For softmax over the chosen logits these
    /// are the logits themselves.
    ///
    /// # Errors
    /// [`ShapeError`] if `logits` is no multiple of `experts`.
    pub fn scores<A: Accum>(&self, experts: usize, logits: &[A], out: &mut [A]) -> Result<(), ShapeError> {
        within(OpId("scores"), "experts", 1, i32::MAX as usize, experts)?;
        expect(OpId("scores"), "logits", &[logits.len() / experts, experts], logits.len())?;
        expect(OpId("scores"), "out", &[logits.len()], out.len())?;
        for (logits, out) in logits.chunks(experts).zip(out.chunks_mut(experts)) {
            out.copy_from_slice(&scores(self.score, logits));
        }
        Ok(())
    }
}
