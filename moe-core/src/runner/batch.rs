//! Batch: what a call's tokens are part of, and what follows for the losses.
//!
//! Every loss is a sum over local tokens divided by a global count, so that gradients of micro-batches and ranks add up:
//! * sequence-wise: `coefficient / step_sequences * sum over s of E / (K L_s^2) * sum over e of counts[s, e] * prob_sums[s, e]`
//! * batch-wise: the micro-batch is one sequence of its T tokens with the weight T / step_tokens
//! * z: `coefficient / step_tokens * sum over t of logsumexp^2`
//!
//! Counts and lengths are those of whole sequences and micro-batches, over all ranks that have parts of them; probabilities are a rank's own.

use super::share::Share;
use crate::config::{BalanceLoss, MoeConfig, Place};
use crate::error::{BackendError, ConfigError, Error};
use crate::ops::Stamp;
use alloc::string::ToString;
use alloc::vec::Vec;

/// What the tokens of the next calls are part of. The default: one sequence, which is the whole step.
///
/// A call's tokens are those of the tensor-parallel group together, in the order of its ranks: all its ranks give the
/// same batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    /// lengths of the sequences in the call, in order; empty for one sequence of all tokens
    pub sequences: &'a [usize],
    /// lengths of the same sequences as wholes, where context parallelism spreads each over ranks; empty: they are whole here
    pub whole_sequences: &'a [usize],
    /// with sequence parallelism, tokens of each rank of the tensor-parallel group; empty: all have as many
    pub split: &'a [usize],
    /// tokens of the micro-batch over all data- and context-parallel ranks, for batch-wise balancing; `None`: this call's
    pub batch_tokens: Option<usize>,
    /// tokens of the whole optimizer step, over micro-batches and ranks; `None`: this call's
    pub step_tokens: Option<usize>,
    /// sequences of the whole optimizer step, over micro-batches and ranks; `None`: this call's
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
    pub(crate) whole_sequences: Vec<usize>,
    pub(crate) split: Vec<usize>,
    pub(crate) batch_tokens: Option<usize>,
    pub(crate) step_tokens: Option<usize>,
    pub(crate) step_sequences: Option<usize>,
    pub(crate) stamp: Stamp,
    pub(crate) pipelined: bool,
    pub(crate) step_counts: Vec<u32>,
}

/// Whether other ranks have tokens of the same step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    /// other sequences
    pub(crate) dp: bool,
    /// other parts of the same sequences
    pub(crate) cp: bool,
}

impl BatchState {
    pub(crate) fn with_room(sequences: usize, config: &MoeConfig) -> Self {
        Self {
            sequences: Vec::with_capacity(sequences),
            whole_sequences: Vec::with_capacity(sequences),
            split: Vec::with_capacity(config.place.tp.size),
            step_counts: Vec::with_capacity(config.experts),
            ..Self::default()
        }
    }

    /// Takes over the values; allocates nothing within the room.
    pub(crate) fn set(&mut self, batch: &Batch<'_>) {
        let put = |to: &mut Vec<usize>, from: &[usize]| {
            to.clear();
            to.extend_from_slice(from);
        };
        put(&mut self.sequences, batch.sequences);
        put(&mut self.whole_sequences, batch.whole_sequences);
        put(&mut self.split, batch.split);
        self.step_counts.clear();
        self.step_counts.extend_from_slice(batch.step_counts.unwrap_or(&[]));
        self.batch_tokens = batch.batch_tokens;
        self.step_tokens = batch.step_tokens;
        self.step_sequences = batch.step_sequences;
        self.stamp = batch.stamp;
        self.pipelined = batch.pipelined;
    }

    fn as_batch(&self) -> Batch<'_> {
        Batch {
            sequences: &self.sequences,
            whole_sequences: &self.whole_sequences,
            split: &self.split,
            batch_tokens: self.batch_tokens,
            step_tokens: self.step_tokens,
            step_sequences: self.step_sequences,
            stamp: self.stamp,
            pipelined: self.pipelined,
            step_counts: (!self.step_counts.is_empty()).then_some(&self.step_counts),
        }
    }

    /// Whether the losses are those of `other`: all but the stamp is equal.
    pub(crate) fn has_losses_of(&self, other: &Self) -> bool {
        let Self {
            sequences,
            whole_sequences,
            // It decides the share, which the losses are told apart by as well.
            split: _,
            batch_tokens,
            step_tokens,
            step_sequences,
            stamp: _,
            pipelined,
            step_counts,
        } = self;
        *sequences == other.sequences
            && *whole_sequences == other.whole_sequences
            && *step_counts == other.step_counts
            && (*batch_tokens, *step_tokens, *step_sequences, *pipelined)
                == (other.batch_tokens, other.step_tokens, other.step_sequences, other.pipelined)
    }

    /// Copies without allocating, where `self` has the room.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.set(&other.as_batch());
    }

    /// The share of a rank that is given `local` tokens.
    pub(crate) fn share<B: BackendError>(&self, place: &Place, local: usize) -> Result<Share, Error<B>> {
        let split = &self.split;
        if !split.is_empty() {
            if !place.sequence_parallel || split.len() != place.tp.size {
                return Err(Error::State(
                    "the batch's split needs sequence parallelism and a number for each rank of tp",
                ));
            }
            let total = split.iter().try_fold(0_usize, |sum, tokens| sum.checked_add(*tokens));
            if split[place.tp.rank] != local || total.is_none() {
                return Err(Error::State("the batch's split is not that of the call's tokens"));
            }
        }
        Ok(Share::of(place, split, local))
    }

    /// Checks the batch against a layer and the tokens of a tensor-parallel group.
    pub(crate) fn check<B: BackendError>(
        &self,
        config: &MoeConfig,
        tokens: usize,
        spread: Spread,
    ) -> Result<(), Error<B>> {
        let total = self.sequences.iter().try_fold(0_usize, |sum, length| sum.checked_add(*length));
        if !self.sequences.is_empty() && total != Some(tokens) {
            return Err(Error::State("the batch's sequence lengths do not add up to the call's tokens"));
        }
        let whole = &self.whole_sequences;
        let shorter = || whole.iter().enumerate().any(|(s, length)| *length < self.local_length(tokens, s));
        if !whole.is_empty() && (whole.len() != self.count() || shorter()) {
            return Err(Error::State(
                "the batch's whole_sequences must have one length per sequence, none shorter than its part here",
            ));
        }
        if self.step_tokens.is_some_and(|step| step < self.batch_tokens.unwrap_or(tokens).max(tokens)) {
            return Err(Error::State("the batch's step_tokens are fewer than the call's tokens"));
        }
        if self.batch_tokens.is_some_and(|batch| batch < tokens) {
            return Err(Error::State("the batch's batch_tokens are fewer than the call's tokens"));
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
        self.check_spread(config, tokens, spread)
    }

    /// What other ranks have is not known here, and no default can stand for it.
    fn check_spread<B: BackendError>(
        &self,
        config: &MoeConfig,
        tokens: usize,
        spread: Spread,
    ) -> Result<(), Error<B>> {
        let Spread { dp, cp } = spread;
        let loss = config.balance.loss;
        let batch_wise = matches!(loss, Some(BalanceLoss::Batch(_)));
        if (dp || cp) && (batch_wise || config.balance.z_loss > 0.0) && self.step_tokens.is_none() {
            return Err(Error::State("other ranks have tokens of this step: give Batch::step_tokens"));
        }
        if (dp || cp) && batch_wise && self.step_counts.is_empty() && self.batch_tokens.is_none() {
            return Err(Error::State(
                "other ranks have tokens of this micro-batch: give Batch::batch_tokens",
            ));
        }
        if matches!(loss, Some(BalanceLoss::Sequence(_))) {
            if dp && self.step_sequences.is_none() {
                return Err(Error::State(
                    "other ranks have sequences of this step: give Batch::step_sequences",
                ));
            }
            if cp && tokens > 0 && self.whole_sequences.is_empty() {
                return Err(Error::State(
                    "other ranks have parts of these sequences: give Batch::whole_sequences",
                ));
            }
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

    fn local_length(&self, tokens: usize, s: usize) -> usize {
        self.sequences.get(s).copied().unwrap_or(tokens)
    }

    /// Length of the part of sequence `s` in this call, as the layer's statistics see it.
    pub(crate) fn length(&self, config: &MoeConfig, tokens: usize, s: usize) -> usize {
        match config.balance.loss {
            Some(BalanceLoss::Sequence(_)) => self.local_length(tokens, s),
            _ => tokens,
        }
    }

    /// Tokens that the counts of sequence `s` are made of, over all ranks.
    fn counted(&self, config: &MoeConfig, tokens: usize, s: usize) -> usize {
        match config.balance.loss {
            Some(BalanceLoss::Sequence(_)) => {
                self.whole_sequences.get(s).copied().unwrap_or(self.local_length(tokens, s))
            }
            _ if !self.step_counts.is_empty() => self.step_tokens.unwrap_or(tokens),
            _ => self.batch_tokens.unwrap_or(tokens),
        }
    }

    /// What `counts[s, e] * prob_sums[s, e]` is multiplied with in the loss.
    pub(crate) fn factor(&self, config: &MoeConfig, tokens: usize, s: usize) -> f64 {
        let counted = self.counted(config, tokens, s) as f64;
        if counted == 0.0 || self.length(config, tokens, s) == 0 {
            return 0.0;
        }
        let per_slot = config.experts as f64 / config.top_k as f64;
        match config.balance.loss {
            Some(BalanceLoss::Sequence(coefficient)) => {
                let sequences = self.step_sequences.unwrap_or(self.count()) as f64;
                f64::from(coefficient) * per_slot / (sequences * counted * counted)
            }
            Some(BalanceLoss::Batch(coefficient)) => {
                let step = self.step_tokens.or(self.batch_tokens).unwrap_or(tokens) as f64;
                f64::from(coefficient) * per_slot / (counted * step)
            }
            None => 0.0,
        }
    }

    /// What the sum of squared logsumexp is multiplied with in the loss.
    pub(crate) fn z_factor(&self, config: &MoeConfig, tokens: usize) -> f64 {
        match self.step_tokens.or(self.batch_tokens).unwrap_or(tokens) {
            0 => 0.0,
            step => f64::from(config.balance.z_loss) / step as f64,
        }
    }
}
