//! Exchange: rows on their way to the owners of experts, and back.
//!
//! Every rank gathers all ranks' offsets, so that all know every count and take the same path: segments of equal length, of
//! any length, or padded to the longest. Rows are packed by destination, which is their order already, and travel in one
//! all-to-all; [`Merge`] finds their expert-major order by index. What comes back is in the order it left in.

use super::arrived::{Arrived, Splits};
use super::saved::Routing;
use super::share::Room;
use super::table::{EXTRA, Table};
use super::{Plan, alike, limit};
use crate::collective::Collective;
use crate::config::{MemoryPolicy, MoeConfig};
use crate::device::{Device, Path};
use crate::error::{Error, OpId};
use crate::ops::{Combine, CombineArgs, Gather, GatherArgs, Merge, MergeArgs, MoeDevice};
use crate::scalar::Scalar;
use crate::session::Session;
use crate::view::{In, Out, first, first_mut, whole, whole_mut};
use alloc::vec;
use alloc::vec::Vec;

/// The all-to-all of rows, as it stands in a trace. Its path says how long segments are: `equal`, `padded` or `variable`.
pub const ALL_TO_ALL: OpId = OpId("all_to_all");
/// The exchange of counts, as it stands in a trace.
pub const COUNTS: OpId = OpId("all_gather counts");

/// Workspace of the exchange.
pub(super) struct Exchange<D: Device, T: Scalar> {
    /// (ep, E + 1 + EXTRA): every rank's offsets and what it adds to them
    gathered: D::Owned<u32>,
    words: Vec<u32>,
    upload: Vec<u32>,
    /// rows that leave, and those that have come back
    rows: D::Owned<T>,
    /// weights that leave, and gradients of weights that have come back
    values: D::Owned<T::Acc>,
    /// rows received for this call alone: x in inference and where it is not kept, dout in backward
    pub(super) received: D::Owned<T>,
    /// rows of x received a second time
    pub(super) again: Option<D::Owned<T>>,
    /// gradients of the weights of received rows
    pub(super) ds: D::Owned<T::Acc>,
    send: Vec<usize>,
    receive: Vec<usize>,
    padded: bool,
}

impl<T: Scalar, D: MoeDevice<T>> Exchange<D, T> {
    pub(super) fn new(
        session: &Session<D>,
        config: &MoeConfig,
        room: &Room,
        training: bool,
        padded: bool,
    ) -> Result<Self, Error<D::Error>> {
        let MoeConfig { width, experts, .. } = *config;
        let ranks = config.place.ep.size;
        let most = room.rows.max(room.slots);
        let again = training && config.memory == MemoryPolicy::Recompute;
        Ok(Self {
            gathered: session.alloc(ranks * (experts + 1 + EXTRA))?,
            words: vec![0; ranks * (experts + 1 + EXTRA)],
            upload: Vec::with_capacity(experts.max(ranks + 1)),
            rows: session.alloc(most * width)?,
            values: session.alloc(most)?,
            received: session.alloc(room.rows * width)?,
            again: if again { Some(session.alloc(room.rows * width)?) } else { None },
            ds: session.alloc(if training { most } else { 0 })?,
            send: Vec::with_capacity(ranks),
            receive: Vec::with_capacity(ranks),
            padded,
        })
    }

    /// Decides how rows will travel, from the routing of every rank; returns the plan with the rows that arrive.
    ///
    /// # Errors
    /// [`Error::Limit`] on every rank alike if one has no room for its rows, [`Error::Config`] if one has another layer or limits that
    /// do not go together; nothing has travelled then.
    pub(super) fn agree<C: Collective<D>>(
        &mut self,
        session: &mut Session<D>,
        group: &mut C,
        routing: &Routing<D, T>,
        arrived: &mut Arrived<D, T>,
        plan: &Plan,
    ) -> Result<Plan, Error<D::Error>> {
        let ep = plan.config.place.ep;
        let (experts, here) = (plan.config.experts, plan.config.part().experts);
        let words = experts + 1 + EXTRA;
        let gathered = first_mut::<D, u32>(&mut self.gathered, ep.size * words)?;
        self.receive.clear();
        self.receive.resize(ep.size, words);
        let source = first::<D, u32>(&routing.offsets, words)?;
        group.all_gather::<u32>(session.stream(), source, gathered, &self.receive)?;
        session.trace_mut().record(COUNTS, Path("equal"));
        let all = &mut self.words[..ep.size * words];
        session.download(first::<D, u32>(&self.gathered, ep.size * words)?, all)?;
        let table = Table { words: &self.words[..ep.size * words], experts, ranks: ep.size };
        alike::check("ep", table.alike())?;
        for to in 0..ep.size {
            let rows = (0..ep.size).map(|from| table.rows(from, to)).sum();
            limit("rows that arrive on a rank", rows, table.room(to))?;
        }
        let Splits { send, receive, pitch } = &mut arrived.splits;
        for rank in 0..ep.size {
            send[rank] = table.rows(ep.rank, rank);
            receive[rank] = table.rows(rank, ep.rank);
        }
        let (shortest, longest) = table.extremes();
        let fits =
            longest > 0 && (0..ep.size).all(|rank| longest.saturating_mul(ep.size) <= table.room(rank));
        let padded = self.padded && fits && shortest < longest;
        *pitch = if padded { longest } else { 0 };
        let path = match (padded, shortest == longest) {
            (true, _) => Path("padded"),
            (false, true) => Path("equal"),
            (false, false) => Path("variable"),
        };
        session.trace_mut().record(ALL_TO_ALL, path);
        let plan = Plan { rows: arrived.splits.received(), ..plan.clone() };
        let first_rows = table.offsets(ep.rank).iter().step_by(here.len()).take(ep.size + 1);
        fill(&mut self.upload, first_rows.copied());
        session.upload(&self.upload, whole_mut::<D, u32>(&mut arrived.destinations))?;
        let counts = (0..ep.size).flat_map(|from| here.clone().map(move |expert| (from, expert)));
        fill(&mut self.upload, counts.map(|(from, expert)| table.count(from, expert)));
        session.upload(&self.upload, whole_mut::<D, u32>(&mut arrived.counts))?;
        let args = MergeArgs {
            counts: whole::<D, u32>(&arrived.counts),
            offsets: whole_mut::<D, u32>(&mut arrived.offsets),
            index: first_mut::<D, u32>(&mut arrived.index, plan.rows)?,
            overflow: whole_mut::<D, u32>(&mut arrived.overflow),
        };
        session.run::<Merge>(&plan.merge(arrived.splits.pitch), args)?;
        Ok(plan)
    }

    /// Sends the rows of tokens to their experts.
    pub(super) fn rows_out<C: Collective<D>>(
        &mut self,
        session: &mut Session<D>,
        group: &mut C,
        source: In<'_, D, T>,
        way: &Way<'_, D, T>,
        to: To<'_, D, T>,
    ) -> Result<(), Error<D::Error>> {
        let Way { routing, splits, destinations, plan } = *way;
        let width = plan.config.width;
        let dims = plan.leaving(splits.pitch);
        let args = GatherArgs {
            source,
            index: routing.slot_of_row()?,
            offsets: destinations,
            out: first_mut::<D, T>(&mut self.rows, dims.out_rows() * width)?,
        };
        session.run::<Gather<T>>(&dims, args)?;
        let target = match to {
            To::Kept(target) => first_mut::<D, T>(target, plan.rows * width)?,
            To::Received => first_mut::<D, T>(&mut self.received, plan.rows * width)?,
            To::Again => match &mut self.again {
                Some(again) => first_mut::<D, T>(again, plan.rows * width)?,
                None => return Err(Error::State("the runner has no room for rows received again")),
            },
        };
        splits.elements(&splits.send, width, &mut self.send);
        splits.elements(&splits.receive, width, &mut self.receive);
        let source = first::<D, T>(&self.rows, splits.sent() * width)?;
        Ok(group.all_to_all::<T>(session.stream(), source, &self.send, target, &self.receive)?)
    }

    /// Sends the weights of slots with their rows.
    pub(super) fn weights_out<C: Collective<D>>(
        &mut self,
        session: &mut Session<D>,
        group: &mut C,
        way: &Way<'_, D, T>,
        target: &mut D::Owned<T::Acc>,
    ) -> Result<(), Error<D::Error>> {
        let Way { routing, splits, destinations, plan } = *way;
        let dims = plan.leaving_values(splits.pitch);
        let args = GatherArgs {
            source: routing.weights()?,
            index: routing.slot_of_row()?,
            offsets: destinations,
            out: first_mut::<D, T::Acc>(&mut self.values, dims.out_rows())?,
        };
        session.run::<Gather<T::Acc>>(&dims, args)?;
        splits.elements(&splits.send, 1, &mut self.send);
        splits.elements(&splits.receive, 1, &mut self.receive);
        let source = first::<D, T::Acc>(&self.values, splits.sent())?;
        let target = first_mut::<D, T::Acc>(target, plan.rows)?;
        Ok(group.all_to_all::<T::Acc>(session.stream(), source, &self.send, target, &self.receive)?)
    }

    /// Sends rows back to the tokens' owners. They are then in [`returned`](Self::returned), in the order of the owner's sort.
    pub(super) fn rows_back<C: Collective<D>>(
        &mut self,
        session: &mut Session<D>,
        group: &mut C,
        splits: &Splits,
        rows: &mut D::Owned<T>,
        width: usize,
    ) -> Result<(), Error<D::Error>> {
        splits.elements(&splits.send, width, &mut self.send);
        splits.elements(&splits.receive, width, &mut self.receive);
        let source = first::<D, T>(rows, splits.received() * width)?;
        let target = first_mut::<D, T>(&mut self.rows, splits.sent() * width)?;
        group.all_to_all::<T>(session.stream(), source, &self.receive, target, &self.send)?;
        close_up::<T, D>(session, splits, &self.rows, rows, width)
    }

    /// Rows that have come back, of which `experts` holds them if they came padded.
    pub(super) fn returned<'a>(&'a self, splits: &Splits, experts: &'a D::Owned<T>) -> &'a D::Owned<T> {
        if splits.pitch > 0 { experts } else { &self.rows }
    }

    /// Sends the gradients of weights back, to their slots. A slot without a row gets 0.
    pub(super) fn ds_back<C: Collective<D>>(
        &mut self,
        session: &mut Session<D>,
        group: &mut C,
        way: &Way<'_, D, T>,
        ds: Out<'_, D, T::Acc>,
    ) -> Result<(), Error<D::Error>> {
        let Way { routing, splits, plan, .. } = *way;
        splits.elements(&splits.send, 1, &mut self.send);
        splits.elements(&splits.receive, 1, &mut self.receive);
        let source = first::<D, T::Acc>(&self.ds, splits.received())?;
        let target = first_mut::<D, T::Acc>(&mut self.values, splits.sent())?;
        group.all_to_all::<T::Acc>(session.stream(), source, &self.receive, target, &self.send)?;
        close_up::<T::Acc, D>(session, splits, &self.values, &mut self.ds, 1)?;
        let back = if splits.pitch > 0 { &self.ds } else { &self.values };
        let args = CombineArgs {
            y: first::<D, T::Acc>(back, plan.slots)?,
            row_of_slot: routing.row_of_slot()?,
            weights: None,
            base: [None, None, None],
            out: ds,
        };
        session.run::<Combine<T::Acc>>(&plan.to_slots(), args)
    }
}

/// What every trip of one call needs.
pub(super) struct Way<'a, D: Device, T: Scalar> {
    pub(super) routing: &'a Routing<D, T>,
    pub(super) splits: &'a Splits,
    pub(super) destinations: In<'a, D, u32>,
    pub(super) plan: &'a Plan,
}

/// Where received rows go.
pub(super) enum To<'a, D: Device, T: Scalar> {
    /// a buffer that backward will read
    Kept(&'a mut D::Owned<T>),
    Received,
    Again,
}

/// Moves padded segments together, into another buffer.
fn close_up<E: Scalar, D: Device>(
    session: &Session<D>,
    splits: &Splits,
    from: &D::Owned<E>,
    to: &mut D::Owned<E>,
    width: usize,
) -> Result<(), Error<D::Error>> {
    if splits.pitch == 0 {
        return Ok(());
    }
    let mut row = 0;
    for (rank, rows) in splits.send.iter().enumerate() {
        let start = rank * splits.pitch * width;
        let segment = whole::<D, E>(from).slice(start..start + rows * width)?;
        let place = whole_mut::<D, E>(to).slice(row * width..(row + rows) * width)?;
        session.device().copy(session.stream(), segment, place).map_err(Error::Device)?;
        row += rows;
    }
    Ok(())
}

fn fill(buffer: &mut Vec<u32>, values: impl Iterator<Item = u32>) {
    buffer.clear();
    buffer.extend(values);
}
