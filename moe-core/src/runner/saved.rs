//! Saved: what backward needs of a forward pass, one per layer and micro-batch in flight.

use super::arrived::{Arrived, Side};
use super::batch::BatchState;
use super::share::{Room, Share};
use super::table::EXTRA;
use super::{Limits, alike};
use crate::config::{MemoryPolicy, MoeConfig};
use crate::device::Device;
use crate::error::Error;
use crate::ops::{MoeDevice, STAMP, Stamp};
use crate::scalar::{Elem, Scalar};
use crate::session::Session;
use crate::view::{In, Out, first, first_mut, whole, whole_mut};

/// A routing decision and its dispatch: which rows belong to which slots, and what the losses are made of.
pub struct Routing<D: Device, T: Scalar> {
    pub(crate) share: Share,
    pub(crate) config: MoeConfig,
    pub(crate) batch: BatchState,
    /// what the losses' buffers were last filled for, with `batch`
    pub(crate) losses_of: Option<Share>,
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
        let MoeConfig { experts, place, .. } = *config;
        let Room { routed, slots, rows, .. } = Room::of(config, limits)?;
        let sequences = limits.sequences;
        // With expert parallelism the offsets travel, and with them how many rows there is room for on this rank, and what must
        // be alike.
        let mut offsets = session.alloc(experts + 1 + EXTRA)?;
        if place.ep.size > 1 {
            let added: [u32; EXTRA] = [rows as u32, alike::word(config, limits)];
            let after = experts + 1..experts + 1 + EXTRA;
            session.upload(&added, whole_mut::<D, u32>(&mut offsets).slice(after)?)?;
        }
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
            share: Share::default(),
            config: *config,
            batch: BatchState::with_room(sequences, config),
            losses_of: None,
            stamped: None,
            logits: session.alloc(routed * experts)?,
            ids: session.alloc(slots)?,
            weights: session.alloc(slots)?,
            non_finite: session.alloc(1)?,
            offsets,
            row_of_slot: session.alloc(slots)?,
            slot_of_row: session.alloc(slots)?,
            counts: session.alloc(experts)?,
            dropped: session.alloc(1)?,
            stamp: session.alloc(STAMP)?,
            losses,
        })
    }

    /// Tokens of the last forward that this rank routes.
    pub fn tokens(&self) -> usize {
        self.share.routed.len()
    }

    fn slots(&self) -> usize {
        self.tokens() * self.config.top_k
    }

    /// (tokens, experts)
    ///
    /// # Errors
    /// Never after a forward; [`Error::Shape`] would name the buffer.
    pub fn logits(&self) -> Result<In<'_, D, T::Acc>, Error<D::Error>> {
        Ok(first::<D, T::Acc>(&self.logits, self.tokens() * self.config.experts)?)
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

    /// (experts + 1): first row of each expert, and the number of rows, before any row travels
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

    /// The tokens `rows` as the experts see them.
    pub(crate) fn side<'a>(&'a self, rows: In<'a, D, T>) -> Result<Side<'a, D, T>, Error<D::Error>> {
        let (index, offsets, weights) = (self.slot_of_row()?, self.offsets()?, self.weights()?);
        Ok(Side { rows, index, offsets, weights, out_index: None })
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
    /// what came from the owners of tokens, with expert parallelism
    pub(crate) arrived: Option<Arrived<D, T>>,
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
        let MoeConfig { activation, shared, .. } = *config;
        let (part, room) = (config.part(), Room::of(config, limits)?);
        let tokens = room.total;
        let keeps = training && config.memory == MemoryPolicy::Keep;
        let up = activation.up_width(part.hidden.len());
        let h = if keeps { Some(session.alloc(room.rows * up)?) } else { None };
        let shared_up = activation.up_width(part.shared_hidden.len());
        let shared_h = match shared {
            Some(_) if keeps => Some(session.alloc(tokens * shared_up)?),
            _ => None,
        };
        let arrived =
            if config.place.ep.size > 1 { Some(Arrived::new(session, config, &room, keeps)?) } else { None };
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
        Ok(Self { routing, arrived, h, shared_h, shared_gate, stage: Stage::Empty, adopted: false })
    }

    /// Bytes that it keeps for each token of the runner's limit, x and what does not grow with tokens aside.
    pub fn bytes_per_token(&self) -> usize {
        let (routing, gate, arrived) = (&self.routing, self.shared_gate.as_ref(), self.arrived.as_ref());
        let tokens = whole::<D, T::Acc>(&routing.logits).len() / routing.config.experts;
        let kept = [self.h.as_ref(), self.shared_h.as_ref(), arrived.and_then(|arrived| arrived.x.as_ref())];
        let sums = [
            Some(&routing.logits),
            Some(&routing.weights),
            gate.map(|gate| &gate.logits),
            gate.map(|gate| &gate.weights),
            arrived.map(|arrived| &arrived.weights),
        ];
        let indices = [
            Some(&routing.ids),
            Some(&routing.row_of_slot),
            Some(&routing.slot_of_row),
            gate.map(|gate| &gate.ids),
            arrived.map(|arrived| &arrived.index),
        ];
        let bytes = kept.into_iter().flatten().map(|b| whole::<D, T>(b).len()).sum::<usize>()
            * T::DTYPE.size()
            + sums.into_iter().flatten().map(|b| whole::<D, T::Acc>(b).len()).sum::<usize>()
                * T::Acc::DTYPE.size()
            + indices.into_iter().flatten().map(|b| whole::<D, u32>(b).len()).sum::<usize>()
                * size_of::<u32>();
        bytes / tokens.max(1)
    }

    /// The routing of the last forward.
    pub fn routing(&self) -> &Routing<D, T> {
        &self.routing
    }
}
