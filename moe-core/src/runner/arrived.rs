//! Arrived: rows that came to this rank's experts from the owners of tokens, and the way back.

use super::Plan;
use super::exchange::Way;
use super::saved::Routing;
use super::share::Room;
use crate::config::MoeConfig;
use crate::device::Device;
use crate::error::Error;
use crate::scalar::Scalar;
use crate::session::Session;
use crate::view::{In, first, whole};
use alloc::vec;
use alloc::vec::Vec;

/// How many rows go between this rank and each rank of the group.
#[derive(Clone, Debug)]
pub(crate) struct Splits {
    /// to each rank
    pub(crate) send: Vec<usize>,
    /// from each rank
    pub(crate) receive: Vec<usize>,
    /// rows from one rank's segment to the next's on both sides; 0 if segments lie end to end
    pub(crate) pitch: usize,
}

impl Splits {
    /// Rows of the buffer that receives.
    pub(crate) fn received(&self) -> usize {
        if self.pitch > 0 { self.pitch * self.receive.len() } else { self.receive.iter().sum() }
    }

    /// Rows of the buffer that sends.
    pub(crate) fn sent(&self) -> usize {
        if self.pitch > 0 { self.pitch * self.send.len() } else { self.send.iter().sum() }
    }

    /// Elements to or from each rank, in rows of `width`.
    pub(crate) fn elements(&self, rows: &[usize], width: usize, elements: &mut Vec<usize>) {
        elements.clear();
        let rows = rows.iter().map(|rows| if self.pitch > 0 { self.pitch } else { *rows });
        elements.extend(rows.map(|rows| rows * width));
    }
}

/// What a forward pass received, and where it goes. Rows stand in the order of (source rank, expert, token, slot).
pub(crate) struct Arrived<D: Device, T: Scalar> {
    pub(crate) splits: Splits,
    /// (ep + 1): this rank's first row for each destination
    pub(crate) destinations: D::Owned<u32>,
    /// (ep, e)
    pub(crate) counts: D::Owned<u32>,
    /// (e + 1): bounds of this rank's experts in expert-major order
    pub(crate) offsets: D::Owned<u32>,
    /// (rows): where a row of the expert-major order stands among those received
    pub(crate) index: D::Owned<u32>,
    pub(crate) overflow: D::Owned<u32>,
    /// (rows): the weights that came with the rows
    pub(crate) weights: D::Owned<T::Acc>,
    /// (rows, D): the rows of x, where they are kept for backward
    pub(crate) x: Option<D::Owned<T>>,
}

impl<D: Device, T: Scalar> Arrived<D, T> {
    pub(crate) fn new(
        session: &Session<D>,
        config: &MoeConfig,
        room: &Room,
        keeps: bool,
    ) -> Result<Self, Error<D::Error>> {
        let (ranks, experts, rows) = (config.place.ep.size, config.part().experts.len(), room.rows);
        Ok(Self {
            splits: Splits { send: vec![0; ranks], receive: vec![0; ranks], pitch: 0 },
            destinations: session.alloc(ranks + 1)?,
            counts: session.alloc(ranks * experts)?,
            offsets: session.alloc(experts + 1)?,
            index: session.alloc(rows)?,
            overflow: session.alloc(1)?,
            weights: session.alloc(rows)?,
            x: if keeps { Some(session.alloc(rows * config.width)?) } else { None },
        })
    }

    /// What the trips of one call need, and the buffers that x and the weights may arrive in.
    #[allow(clippy::type_complexity)]
    pub(super) fn way<'a>(
        &'a mut self,
        routing: &'a Routing<D, T>,
        plan: &'a Plan,
    ) -> (Option<&'a mut D::Owned<T>>, &'a mut D::Owned<T::Acc>, Way<'a, D, T>) {
        let Self { splits, destinations, weights, x, .. } = self;
        let way = Way { routing, splits, destinations: whole::<D, u32>(destinations), plan };
        (x.as_mut(), weights, way)
    }

    /// The received `rows` as the experts see them.
    pub(crate) fn side<'a>(&'a self, rows: In<'a, D, T>) -> Result<Side<'a, D, T>, Error<D::Error>> {
        let received = self.splits.received();
        let index = first::<D, u32>(&self.index, received)?;
        Ok(Side {
            rows,
            index,
            offsets: whole::<D, u32>(&self.offsets),
            weights: first::<D, T::Acc>(&self.weights, received)?,
            out_index: Some(index),
        })
    }
}

/// Rows as the experts see them: their own tokens', or received ones.
pub(crate) struct Side<'a, D: Device, T: Scalar> {
    /// where rows are read
    pub(crate) rows: In<'a, D, T>,
    /// the slot of each row in expert-major order
    pub(crate) index: In<'a, D, u32>,
    pub(crate) offsets: In<'a, D, u32>,
    /// by slot
    pub(crate) weights: In<'a, D, T::Acc>,
    /// where rows are written, if not in expert-major order
    pub(crate) out_index: Option<In<'a, D, u32>>,
}
