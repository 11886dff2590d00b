//! Saved: what backward needs of a forward pass, one per layer and micro-batch in flight.

use super::Limits;
use super::batch::BatchState;
use crate::config::{MemoryPolicy, MoeConfig};
use crate::device::Device;
use crate::error::Error;
use crate::ops::{MoeDevice, STAMP, Stamp};
use crate::scalar::{Elem, Scalar};
use crate::session::Session;
use crate::view::{In, Out, first, first_mut};

/// A routing decision and its dispatch: which rows belong to which slots, and what the losses are made of.
pub struct Routing<D: Device, T: Scalar> {
    pub(crate) tokens: usize,
    pub(crate) config: MoeConfig,
    pub(crate) batch: BatchState,
    /// tokens that the losses' buffers were last filled for, with `batch`
    pub(crate) losses_of: Option<usize>,
    /// what is in `stamp`
    pub(crate) stamped: Option<Stamp>,
    pub(crate) logits: D::Owned<T::Acc>,
    pub(crate) ids: D::Owned<u32>,
    pub(crate) weights: D::Owned<T::Acc>,
    pub(crate) non_finite: D::Owned<u32>,
    pub(crate) offsets: D::Owned<u32>,
    pub(crate) row_of_slot: D::Owned<u32>,
    pub(crate) slot_of_row: D::Owned<u32>,
    pub(crate) counts: D::Owned<u32>,
    pub(crate) dropped: D::Owned<u32>,
    pub(crate) stamp: D::Owned<u32>,
    pub(crate) losses: Option<Losses<D, T>>,
}

/// Statistics of a training forward, and the factors that the losses put on them.
pub(crate) struct Losses<D: Device, T: Scalar> {
    pub(crate) sequences: D::Owned<u32>,
    pub(crate) counts: D::Owned<u32>,
    pub(crate) prob_sums: D::Owned<T::Acc>,
    pub(crate) z_sum: D::Owned<T::Acc>,
    pub(crate) factors: D::Owned<T::Acc>,
    pub(crate) z_factor: D::Owned<T::Acc>,
    pub(crate) step_counts: D::Owned<u32>,
}

impl<T: Scalar, D: MoeDevice<T>> Routing<D, T> {
    pub(crate) fn new(
        session: &Session<D>,
        config: &MoeConfig,
        limits: &Limits,
        training: bool,
    ) -> Result<Self, Error<D::Error>> {
        let MoeConfig { experts, top_k, .. } = *config;
        let (tokens, sequences) = (limits.tokens, limits.sequences);
        let losses = if training {
            Some(Losses {
                sequences: session.alloc(sequences + 1)?,
                counts: session.alloc(sequences * experts)?,
                prob_sums: session.alloc(sequences * experts)?,
                z_sum: session.alloc(1)?,
                factors: session.alloc(sequences)?,
                z_factor: session.alloc(1)?,
                step_counts: session.alloc(experts)?,
            })
        } else {
            None
        };
        Ok(Self {
            tokens: 0,
            config: *config,
            batch: BatchState::with_room(sequences, experts),
            losses_of: None,
            stamped: None,
            logits: session.alloc(tokens * experts)?,
            ids: session.alloc(tokens * top_k)?,
            weights: session.alloc(tokens * top_k)?,
            non_finite: session.alloc(1)?,
            offsets: session.alloc(experts + 1)?,
            row_of_slot: session.alloc(tokens * top_k)?,
            slot_of_row: session.alloc(tokens * top_k)?,
            counts: session.alloc(experts)?,
            dropped: session.alloc(1)?,
            stamp: session.alloc(STAMP)?,
            losses,
        })
    }

    /// Tokens of the last forward.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn slots(&self) -> usize {
        self.tokens * self.config.top_k
    }

    /// (tokens, experts)
    ///
    /// # Errors
    /// Never after a forward; [`Error::Shape`] would name the buffer.
    pub fn logits(&self) -> Result<In<'_, D, T::Acc>, Error<D::Error>> {
        Ok(first::<D, T::Acc>(&self.logits, self.tokens * self.config.experts)?)
    }

    /// (tokens, top_k); `experts` for a slot whose score was NaN
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn ids(&self) -> Result<In<'_, D, u32>, Error<D::Error>> {
        Ok(first::<D, u32>(&self.ids, self.slots())?)
    }

    /// (tokens, top_k)
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn weights(&self) -> Result<In<'_, D, T::Acc>, Error<D::Error>> {
        Ok(first::<D, T::Acc>(&self.weights, self.slots())?)
    }

    /// (experts + 1): first row of each expert, and the number of rows
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn offsets(&self) -> Result<In<'_, D, u32>, Error<D::Error>> {
        Ok(first::<D, u32>(&self.offsets, self.config.experts + 1)?)
    }

    /// (tokens, top_k): each slot's row, or [`NO_ROW`](crate::ops::NO_ROW)
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn row_of_slot(&self) -> Result<In<'_, D, u32>, Error<D::Error>> {
        Ok(first::<D, u32>(&self.row_of_slot, self.slots())?)
    }

    /// (tokens * top_k): each row's slot, up to the number of rows
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn slot_of_row(&self) -> Result<In<'_, D, u32>, Error<D::Error>> {
        Ok(first::<D, u32>(&self.slot_of_row, self.slots())?)
    }

    /// Room for recorded ids: `slot_of_row`, which is free until Sort writes it.
    pub(crate) fn recorded_mut(&mut self) -> Result<Out<'_, D, u32>, Error<D::Error>> {
        let slots = self.slots();
        Ok(first_mut::<D, u32>(&mut self.slot_of_row, slots)?)
    }

    pub(crate) fn ids_mut(&mut self) -> Result<Out<'_, D, u32>, Error<D::Error>> {
        let slots = self.slots();
        Ok(first_mut::<D, u32>(&mut self.ids, slots)?)
    }

    pub(crate) fn weights_mut(&mut self) -> Result<Out<'_, D, T::Acc>, Error<D::Error>> {
        let slots = self.slots();
        Ok(first_mut::<D, T::Acc>(&mut self.weights, slots)?)
    }
}

/// How far a [`Saved`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Empty,
    Routed,
    Forward,
}

/// What backward needs of a training forward. Backward uses it up: h becomes the gradient at the activation's input.
pub struct Saved<D: Device, T: Scalar> {
    pub(crate) routing: Routing<D, T>,
    pub(crate) h: Option<D::Owned<T>>,
    pub(crate) shared_h: Option<D::Owned<T>>,
    pub(crate) shared_gate: Option<SharedGate<D, T>>,
    pub(crate) stage: Stage,
    /// another router decided
    pub(crate) adopted: bool,
}

/// The shared experts' gate as a router with one expert.
pub(crate) struct SharedGate<D: Device, T: Scalar> {
    pub(crate) logits: D::Owned<T::Acc>,
    pub(crate) ids: D::Owned<u32>,
    pub(crate) weights: D::Owned<T::Acc>,
    pub(crate) non_finite: D::Owned<u32>,
}

impl<T: Scalar, D: MoeDevice<T>> Saved<D, T> {
    pub(crate) fn new(
        session: &Session<D>,
        config: &MoeConfig,
        limits: &Limits,
        training: bool,
    ) -> Result<Self, Error<D::Error>> {
        let MoeConfig { top_k, activation, shared, .. } = *config;
        let tokens = limits.tokens;
        let keeps = training && config.memory == MemoryPolicy::Keep;
        let h = if keeps { Some(session.alloc(tokens * top_k * config.up_width())?) } else { None };
        let shared_h = match shared {
            Some(shared) if keeps => Some(session.alloc(tokens * activation.up_width(shared.hidden))?),
            _ => None,
        };
        let shared_gate = match shared {
            Some(shared) if shared.gated => Some(SharedGate {
                logits: session.alloc(tokens)?,
                ids: session.alloc(tokens)?,
                weights: session.alloc(tokens)?,
                non_finite: session.alloc(1)?,
            }),
            _ => None,
        };
        let routing = Routing::new(session, config, limits, training)?;
        Ok(Self { routing, h, shared_h, shared_gate, stage: Stage::Empty, adopted: false })
    }

    /// Bytes that it keeps for each token of the runner's limit, x and what does not grow with tokens aside.
    pub fn bytes_per_token(&self) -> usize {
        let MoeConfig { experts, top_k, .. } = self.routing.config;
        let kept = |buffer: &Option<D::Owned<T>>, width: usize| buffer.as_ref().map_or(0, |_| width);
        let config = &self.routing.config;
        let shared_up = config.shared.map_or(0, |shared| config.activation.up_width(shared.hidden));
        let values = kept(&self.h, top_k * config.up_width()) + kept(&self.shared_h, shared_up);
        let gate = if self.shared_gate.is_some() { 2 } else { 0 };
        let sums = experts + top_k + gate;
        let indices = 3 * top_k + gate / 2;
        values * T::DTYPE.size() + sums * T::Acc::DTYPE.size() + indices * size_of::<u32>()
    }

    /// The routing of the last forward.
    pub fn routing(&self) -> &Routing<D, T> {
        &self.routing
    }
}
