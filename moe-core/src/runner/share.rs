//! Share: which tokens a rank works on, and how much room that takes.

use super::Limits;
use crate::config::{Capacity, MoeConfig, Place};
use crate::error::{OpId, ShapeError, product, within};
use core::ops::Range;

/// Which of the tokens of its tensor-parallel group a rank works on. Ranges count from the group's first token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// T: tokens of the group together; the shared experts see all of them
    pub(crate) total: usize,
    /// those that enter and leave on this rank: all, or with sequence parallelism its own
    pub(crate) local: Range<usize>,
    /// those whose losses this rank adds: every token is one rank's own
    pub(crate) own: Range<usize>,
    /// those that this rank routes: all, or its own where tp splits tokens
    pub(crate) routed: Range<usize>,
}

impl Share {
    /// The share of a rank that is given `local` tokens; with sequence parallelism `split` says how many each rank is given, or
    /// is empty if all have as many.
    pub(crate) fn of(place: &Place, split: &[usize], local: usize) -> Self {
        let tp = place.tp;
        let (total, own) = if place.sequence_parallel && tp.size > 1 {
            let before = |rank: usize| match split {
                [] => rank.saturating_mul(local),
                split => split[..rank].iter().sum(),
            };
            (before(tp.size), before(tp.rank)..before(tp.rank) + local)
        } else {
            (local, tp.share(local))
        };
        Self {
            total,
            local: if place.sequence_parallel { own.clone() } else { 0..total },
            routed: if place.splits_tokens() { own.clone() } else { 0..total },
            own,
        }
    }

    /// This rank's own tokens, counted from the first that it routes.
    pub(crate) fn own_routed(&self) -> Range<usize> {
        self.own.start - self.routed.start..self.own.end - self.routed.start
    }
}

/// The most that a runner has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// T: tokens of the tensor-parallel group
    pub(crate) total: usize,
    /// tokens that this rank routes
    pub(crate) routed: usize,
    /// slots of those
    pub(crate) slots: usize,
    /// rows on this rank's experts
    pub(crate) rows: usize,
}

impl Room {
    pub(crate) fn of(config: &MoeConfig, limits: &Limits) -> Result<Self, ShapeError> {
        let op = OpId("runner");
        let MoeConfig { top_k, place, .. } = *config;
        let total = limits.tokens;
        within(op, "tokens", 0, u32::MAX as usize / top_k - 1, total)?;
        let splits = place.splits_tokens() && !place.sequence_parallel;
        let routed = if splits { total.div_ceil(place.tp.size) } else { total };
        let slots = routed * top_k;
        let rows = if place.ep.size > 1 {
            // A token chooses an expert once, so that at most so many of its slots go to one rank.
            let experts = config.part().experts.len();
            let mut from_one = product(op, "rows", &[routed, top_k.min(experts)])?;
            if let Some(capacity) = capacity(config, slots) {
                from_one = from_one.min(product(op, "rows", &[experts, capacity])?);
            }
            let worst = product(op, "rows", &[place.ep.size, from_one])?;
            limits.received.unwrap_or(worst).min(worst)
        } else {
            slots
        };
        within(op, "received rows", 0, u32::MAX as usize - 1, rows)?;
        Ok(Self { total, routed, slots, rows })
    }
}

/// Rows that an expert may take of one call's slots; `None` without a bound.
pub(crate) fn capacity(config: &MoeConfig, slots: usize) -> Option<usize> {
    let Capacity { factor, .. } = config.capacity?;
    let even = slots as f64 / config.experts as f64;
    Some(libm::ceil(f64::from(factor) * even) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Axis;

    fn place(rank: usize, splits: bool, sequence_parallel: bool) -> Place {
        let tp = Axis { rank, size: 3 };
        Place { tp, etp: if splits { Axis::ONE } else { tp }, sequence_parallel, ..Place::ALONE }
    }

    #[test]
    fn every_token_is_one_ranks_own() {
        for splits in [true, false] {
            let shares: [Share; 3] =
                core::array::from_fn(|rank| Share::of(&place(rank, splits, false), &[], 2));
            assert_eq!(shares.clone().map(|share| share.own), [0..0, 0..1, 1..2]);
            for share in shares {
                assert_eq!((share.total, share.local), (2, 0..2));
                assert_eq!(share.routed, if splits { share.own } else { 0..2 });
            }
        }
    }

    #[test]
    fn with_sequence_parallelism_tokens_come_as_they_are_split() {
        let share = Share::of(&place(1, true, true), &[5, 0, 2], 0);
        assert_eq!((share.total, share.local, share.own, share.routed), (7, 5..5, 5..5, 5..5));
        let share = Share::of(&place(2, false, true), &[], 4);
        assert_eq!((share.total, share.local.clone(), share.own, share.routed), (12, 8..12, 8..12, 0..12));
    }

    #[test]
    fn alone_all_tokens_are_ones_own() {
        let share = Share::of(&Place::ALONE, &[], 4);
        assert_eq!((share.total, share.local, share.own, share.routed), (4, 0..4, 0..4, 0..4));
    }
}
