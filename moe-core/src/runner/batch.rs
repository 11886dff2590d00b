//! Batch: what a call's tokens are part of, and what follows for the losses.
//!
//! Every loss is a sum over local tokens divided by a global count, so that gradients of micro-batches and ranks add up:
//! * sequence-wise: `coefficient / step_sequences * sum over s of E / (K L_s^2) * sum over e of counts[s, e] * prob_sums[s, e]`
//! * batch-wise: the call is one sequence of its T tokens with the weight T / step_tokens
//! * z: `coefficient / step_tokens * sum over t of logsumexp^2`

use crate::config::{BalanceLoss, MoeConfig};
use crate::error::{BackendError, ConfigError, Error};
use crate::ops::Stamp;
use alloc::string::ToString;
use alloc::vec::Vec;

/// What the tokens of the next calls are part of. The default: one sequence, which is the whole step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    /// lengths of the sequences in the call, in order; empty for one sequence of all tokens
    pub sequences: &'a [usize],
    /// tokens of the whole optimizer step, over micro-batches; `None`: this call's
    pub step_tokens: Option<usize>,
    /// sequences of the whole optimizer step; `None`: this call's
    pub step_sequences: Option<usize>,
    /// what jitter and forced balance depend on; its layer number is the configuration's
    pub stamp: Stamp,
    /// micro-batches are in flight together, so that one's counts say nothing about the step: batch-wise balancing is
    /// refused, unless `step_counts` are given
    pub pipelined: bool,
    /// (E) slots per expert of the whole step, for batch-wise balancing over the step
    pub step_counts: Option<&'a [u32]>,
}

/// The runner's own copy of a [`Batch`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BatchState {
    pub(crate) sequences: Vec<usize>,
    pub(crate) step_tokens: Option<usize>,
    pub(crate) step_sequences: Option<usize>,
    pub(crate) stamp: Stamp,
    pub(crate) pipelined: bool,
    pub(crate) step_counts: Vec<u32>,
}

impl BatchState {
    pub(crate) fn with_room(sequences: usize, experts: usize) -> Self {
        Self {
            sequences: Vec::with_capacity(sequences),
            step_counts: Vec::with_capacity(experts),
            ..Self::default()
        }
    }

    /// Takes over the values; allocates nothing within the room.
    pub(crate) fn set(&mut self, batch: &Batch<'_>) {
        self.sequences.clear();
        self.sequences.extend_from_slice(batch.sequences);
        self.step_counts.clear();
        self.step_counts.extend_from_slice(batch.step_counts.unwrap_or(&[]));
        self.step_tokens = batch.step_tokens;
        self.step_sequences = batch.step_sequences;
        self.stamp = batch.stamp;
        self.pipelined = batch.pipelined;
    }

    /// Whether the losses are those of `other`: all but the stamp is equal.
    pub(crate) fn has_losses_of(&self, other: &Self) -> bool {
        let Self { sequences, step_tokens, step_sequences, stamp: _, pipelined, step_counts } = self;
        *sequences == other.sequences
            && *step_counts == other.step_counts
            && (*step_tokens, *step_sequences, *pipelined)
                == (other.step_tokens, other.step_sequences, other.pipelined)
    }

    /// Copies without allocating, where `self` has the room.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.set(&Batch {
            sequences: &other.sequences,
            step_tokens: other.step_tokens,
            step_sequences: other.step_sequences,
            stamp: other.stamp,
            pipelined: other.pipelined,
            step_counts: (!other.step_counts.is_empty()).then_some(&other.step_counts),
        });
    }

    /// Checks the batch against a layer and a number of tokens.
    pub(crate) fn check<B: BackendError>(&self, config: &MoeConfig, tokens: usize) -> Result<(), Error<B>> {
        let total = self.sequences.iter().try_fold(0_usize, |sum, length| sum.checked_add(*length));
        if !self.sequences.is_empty() && total != Some(tokens) {
            return Err(Error::State("the batch's sequence lengths do not add up to the call's tokens"));
        }
        if self.step_tokens.is_some_and(|step| step < tokens) {
            return Err(Error::State("the batch's step_tokens are fewer than the call's tokens"));
        }
        if self.step_sequences.is_some_and(|step| step < self.count()) {
            return Err(Error::State("the batch's step_sequences are fewer than the call's sequences"));
        }
        if !self.step_counts.is_empty() && self.step_counts.len() != config.experts {
            return Err(Error::State("the batch's step_counts do not have one count per expert"));
        }
        let batch_wise = matches!(config.balance.loss, Some(BalanceLoss::Batch(_)));
        if batch_wise && self.pipelined && self.step_counts.is_empty() {
            let wanted = "a micro-batch's counts are not the step's while others are in flight; balance by \
                          sequence or by bias, or give the step's counts in Batch::step_counts";
            return Err(Error::Config(ConfigError {
                field: "balance.loss",
                got: "batch-wise in a pipeline".to_string(),
                wanted: wanted.to_string(),
            }));
        }
        Ok(())
    }

    /// Sequences of the call, for a sequence-wise loss.
    pub(crate) fn count(&self) -> usize {
        self.sequences.len().max(1)
    }

    /// Sequences that a layer's statistics are made for: the loss decides whether they are told apart.
    pub(crate) fn count_for(&self, config: &MoeConfig) -> usize {
        match config.balance.loss {
            Some(BalanceLoss::Sequence(_)) => self.count(),
            _ => 1,
        }
    }

    /// Length of sequence `s` as the layer's statistics see it.
    pub(crate) fn length(&self, config: &MoeConfig, tokens: usize, s: usize) -> usize {
        match config.balance.loss {
            Some(BalanceLoss::Sequence(_)) => self.sequences.get(s).copied().unwrap_or(tokens),
            _ => tokens,
        }
    }

    /// What `counts[s, e] * prob_sums[s, e]` is multiplied with in the loss.
    pub(crate) fn factor(&self, config: &MoeConfig, tokens: usize, s: usize) -> f64 {
        let length = self.length(config, tokens, s) as f64;
        if length == 0.0 {
            return 0.0;
        }
        let per_slot = config.experts as f64 / config.top_k as f64;
        let step_tokens = self.step_tokens.unwrap_or(tokens) as f64;
        match config.balance.loss {
            Some(BalanceLoss::Sequence(coefficient)) => {
                let sequences = self.step_sequences.unwrap_or(self.count()) as f64;
                f64::from(coefficient) * per_slot / (sequences * length * length)
            }
            Some(BalanceLoss::Batch(coefficient)) => {
                let counted = if self.step_counts.is_empty() { length } else { step_tokens };
                f64::from(coefficient) * per_slot / (counted * step_tokens)
            }
            None => 0.0,
        }
    }

    /// What the sum of squared logsumexp is multiplied with in the loss.
    pub(crate) fn z_factor(&self, config: &MoeConfig, tokens: usize) -> f64 {
        match self.step_tokens.unwrap_or(tokens) {
            0 => 0.0,
            step => f64::from(config.balance.z_loss) / step as f64,
        }
    }
}
