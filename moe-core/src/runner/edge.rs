//! Edge: where tokens enter and leave a tensor-parallel group.
//!
//! With sequence parallelism x and dout are gathered where a rank works on all tokens. Outputs and input gradients are brought
//! together in one of three ways:
//! * a rank routes all tokens (etp = tp): every part is partial, and the whole is reduced;
//! * it routes a slice, and holds all tokens: the same, and outside its slice the routed and router parts are 0;
//! * it routes all that it holds (etp = 1 with sequence parallelism): only the shared experts' part is partial, and is reduced.

use super::share::Room;
use super::{Plan, Rows};
use crate::collective::{Collective, Reduce};
use crate::config::MoeConfig;
use crate::device::Device;
use crate::error::Error;
use crate::ops::{Base, Combine, CombineArgs, MoeDevice, NO_ROW};
use crate::scalar::Scalar;
use crate::session::Session;
use crate::view::{In, Out, first, first_mut, whole_mut};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Tokens as a rank works on them.
pub(super) struct Tokens<'a, D: Device, T: Scalar> {
    /// those that it routes
    pub(super) routed: In<'a, D, T>,
    /// those of the whole group, for the shared experts; a rank that has no use for them has none
    pub(super) all: In<'a, D, T>,
}

impl<D: Device, T: Scalar> Clone for Tokens<'_, D, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device, T: Scalar> Copy for Tokens<'_, D, T> {}

/// Gathered tokens.
pub(super) struct Gathered<D: Device, T: Scalar> {
    pub(super) x: D::Owned<T>,
    pub(super) dy: D::Owned<T>,
    pub(super) counts: Vec<usize>,
}

impl<T: Scalar, D: MoeDevice<T>> Gathered<D, T> {
    /// Room for all tokens of the group, where a rank with some of them works on all.
    pub(super) fn new(
        session: &Session<D>,
        config: &MoeConfig,
        room: &Room,
        training: bool,
    ) -> Result<Option<Self>, Error<D::Error>> {
        if !gathers(config) {
            return Ok(None);
        }
        let len = room.total * config.width;
        Ok(Some(Self {
            x: session.alloc(len)?,
            dy: session.alloc(if training { len } else { 0 })?,
            counts: Vec::with_capacity(config.place.tp.size),
        }))
    }
}

/// Whether tokens are gathered.
fn gathers(config: &MoeConfig) -> bool {
    let place = &config.place;
    let works_on_all = !place.splits_tokens() || config.shared.is_some();
    place.tp.size > 1 && place.sequence_parallel && works_on_all
}

/// The tokens `rows` of this rank, with those of the other ranks in `buffer` where they are needed.
pub(super) fn enter<'a, T: Scalar, D: MoeDevice<T>, C: Collective<D>>(
    session: &Session<D>,
    group: &mut C,
    buffer: Option<(&'a mut D::Owned<T>, &mut Vec<usize>)>,
    plan: &Plan,
    split: &[usize],
    rows: &'a Rows<D, T>,
) -> Result<Tokens<'a, D, T>, Error<D::Error>> {
    let (width, share) = (plan.config.width, &plan.share);
    let routed = share.routed.start * width..share.routed.end * width;
    if !gathers(&plan.config) {
        let all = rows.view();
        let routed = if share.local.len() == share.total { all.slice(routed)? } else { all };
        return Ok(Tokens { routed, all });
    }
    let Some((buffer, counts)) = buffer else {
        return Err(Error::State("the runner has no room for the tokens of other ranks"));
    };
    split_elements(plan, split, counts);
    let target = first_mut::<D, T>(buffer, share.total * width)?;
    group.all_gather::<T>(session.stream(), rows.view(), target, counts)?;
    let all = first::<D, T>(buffer, share.total * width)?;
    Ok(Tokens { routed: all.slice(routed)?, all })
}

/// Elements of each rank's own tokens, with sequence parallelism.
fn split_elements(plan: &Plan, split: &[usize], counts: &mut Vec<usize>) {
    let (width, ranks, own) = (plan.config.width, plan.config.place.tp.size, plan.share.own.len());
    counts.clear();
    counts.extend((0..ranks).map(|rank| split.get(rank).copied().unwrap_or(own) * width));
}

/// Workspace of what leaves.
pub(super) struct Edge<D: Device, T: Scalar> {
    /// (total, D): partial sums, before they are scattered
    part: D::Owned<T>,
    /// (own, D): the shared experts' part after that
    shared: D::Owned<T>,
    /// (total): [`NO_ROW`]
    absent: D::Owned<u32>,
    counts: Vec<usize>,
}

impl<T: Scalar, D: MoeDevice<T>> Edge<D, T> {
    pub(super) fn new(
        session: &Session<D>,
        config: &MoeConfig,
        room: &Room,
    ) -> Result<Option<Self>, Error<D::Error>> {
        let place = &config.place;
        if place.tp.size == 1 {
            return Ok(None);
        }
        let len = |wanted: bool, len: usize| if wanted { len } else { 0 };
        let tokens = room.total * config.width;
        let reduces_shared = place.sequence_parallel && place.splits_tokens() && config.shared.is_some();
        let mut absent = session.alloc(len(place.splits_tokens(), room.total))?;
        session.upload(
            &vec![NO_ROW; len(place.splits_tokens(), room.total)],
            whole_mut::<D, u32>(&mut absent),
        )?;
        Ok(Some(Self {
            part: session.alloc(len(gathers(config), tokens))?,
            shared: session.alloc(len(reduces_shared, tokens))?,
            absent,
            counts: Vec::with_capacity(place.tp.size),
        }))
    }
}

/// What a token's output or input gradient is made of on one rank.
pub(super) struct Terms<'a, D: Device, T: Scalar> {
    /// rows of the routed experts
    pub(super) y: In<'a, D, T>,
    pub(super) row_of_slot: In<'a, D, u32>,
    pub(super) weights: Option<In<'a, D, T::Acc>>,
    /// (routed tokens, D): the gate's part of dx
    pub(super) router: Option<In<'a, D, T>>,
    /// of all tokens
    pub(super) shared: Shared<'a, D, T>,
}

/// Parts of the shared experts and of their gate.
type Shared<'a, D, T> = [Option<Base<'a, D, T>>; 2];

impl<'a, D: Device, T: Scalar> Terms<'a, D, T> {
    /// The shared parts of some tokens.
    fn shared_of(&self, tokens: Range<usize>, width: usize) -> Result<Shared<'a, D, T>, Error<D::Error>> {
        let mut parts = self.shared;
        for Base { rows, scale } in parts.iter_mut().flatten() {
            *rows = rows.slice(tokens.start * width..tokens.end * width)?;
            if let Some(scale) = scale {
                *scale = scale.slice(tokens.clone())?;
            }
        }
        Ok(parts)
    }
}

/// Brings the terms of this rank's tokens together, and those of the group's ranks.
pub(super) fn leave<T: Scalar, D: MoeDevice<T>, C: Collective<D>>(
    session: &mut Session<D>,
    group: &mut C,
    edge: Option<&mut Edge<D, T>>,
    plan: &Plan,
    split: &[usize],
    terms: &Terms<'_, D, T>,
    mut out: Out<'_, D, T>,
) -> Result<(), Error<D::Error>> {
    let (place, width, share) = (&plan.config.place, plan.config.width, &plan.share);
    let range = |tokens: &Range<usize>| tokens.start * width..tokens.end * width;
    let router = terms.router.map(|rows| Base { rows, scale: None });
    let Some(edge) = edge.filter(|_| place.tp.size > 1) else {
        return combine(session, plan, terms, router, terms.shared_of(0..share.total, width)?, out);
    };
    if !place.sequence_parallel {
        for outside in [0..share.routed.start, share.routed.end..share.total] {
            if !outside.is_empty() {
                let base = terms.shared_of(outside.clone(), width)?;
                let part = out.reborrow().slice(range(&outside))?;
                combine_terms(
                    session,
                    plan,
                    first::<D, u32>(&edge.absent, outside.len())?,
                    terms,
                    base,
                    part,
                )?;
            }
        }
        let base = terms.shared_of(share.routed.clone(), width)?;
        combine(session, plan, terms, router, base, out.reborrow().slice(range(&share.routed))?)?;
        return Ok(group.all_reduce::<T>(session.stream(), Reduce::Sum, out)?);
    }
    split_elements(plan, split, &mut edge.counts);
    let len = share.total * width;
    if !place.splits_tokens() {
        let base = terms.shared_of(0..share.total, width)?;
        combine(session, plan, terms, router, base, first_mut::<D, T>(&mut edge.part, len)?)?;
        let part = first::<D, T>(&edge.part, len)?;
        return Ok(group.reduce_scatter::<T>(session.stream(), Reduce::Sum, part, out, &edge.counts)?);
    }
    if plan.config.shared.is_none() {
        return combine(session, plan, terms, router, [None, None], out);
    }
    let base = terms.shared_of(0..share.total, width)?;
    let absent = first::<D, u32>(&edge.absent, share.total)?;
    combine_terms(session, plan, absent, terms, base, first_mut::<D, T>(&mut edge.part, len)?)?;
    let (part, shared) = (first::<D, T>(&edge.part, len)?, first_mut::<D, T>(&mut edge.shared, out.len())?);
    group.reduce_scatter::<T>(session.stream(), Reduce::Sum, part, shared, &edge.counts)?;
    let shared = Base { rows: first::<D, T>(&edge.shared, out.len())?, scale: None };
    combine(session, plan, terms, router, [Some(shared), None], out)
}

/// The routed tokens with their rows.
fn combine<T: Scalar, D: MoeDevice<T>>(
    session: &mut Session<D>,
    plan: &Plan,
    terms: &Terms<'_, D, T>,
    router: Option<Base<'_, D, T>>,
    [shared, gate]: Shared<'_, D, T>,
    out: Out<'_, D, T>,
) -> Result<(), Error<D::Error>> {
    let Terms { y, row_of_slot, weights, .. } = *terms;
    let args = CombineArgs { y, row_of_slot, weights, base: [router, shared, gate], out };
    session.run::<Combine<T>>(&plan.combine(), args)
}

/// Tokens whose rows are another rank's.
fn combine_terms<T: Scalar, D: MoeDevice<T>>(
    session: &mut Session<D>,
    plan: &Plan,
    absent: In<'_, D, u32>,
    terms: &Terms<'_, D, T>,
    [shared, gate]: Shared<'_, D, T>,
    out: Out<'_, D, T>,
) -> Result<(), Error<D::Error>> {
    let y = terms.y.slice(0..0)?;
    let dims = plan.combine_terms(absent.len());
    let args = CombineArgs { y, row_of_slot: absent, weights: None, base: [shared, gate, None], out };
    session.run::<Combine<T>>(&dims, args)
}
