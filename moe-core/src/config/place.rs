//! Place: which part of a layer a rank has.
//!
//! A mesh has `rank = ((r * dp_shard + s) * cp + c) * tp + t = ((r * efsdp + f) * ep + p) * etp + h`; the layer on a rank
//! knows of it what decides shapes and slices: p of ep, t of tp, h of etp. With tokens replicated over tp, etp is 1, and the ranks of tp split
//! tokens among them, or tp, and they split each expert's hidden width.

use super::MoeConfig;
use super::validate::wrong;
use crate::error::ConfigError;
use alloc::format;
use core::ops::Range;

/// One axis of a mesh, and where on it a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// ranks
    pub size: usize,
    /// this rank, below `size`
    pub rank: usize,
}

impl Axis {
    /// The axis of one rank.
    pub const ONE: Self = Self { size: 1, rank: 0 };

    /// This rank's share of `len` things: `rank * len / size .. (rank + 1) * len / size`, rounded down; it may be empty.
    pub fn share(self, len: usize) -> Range<usize> {
        // The product may be beyond 64 bits, the quotient is not.
        let at = |rank: usize| (rank as u128 * len as u128 / self.size.max(1) as u128) as usize;
        at(self.rank)..at(self.rank.saturating_add(1))
    }
}

/// A rank's place among those that hold one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// expert parallelism: rank p has the experts `[p * E / ep, (p + 1) * E / ep)`
    pub ep: Axis,
    /// tensor parallelism: rank t has the part `[t * Fs / tp, (t + 1) * Fs / tp)` of the shared experts' hidden width
    pub tp: Axis,
    /// tensor parallelism inside the routed experts, which is 1 or tp: rank h has the part `[h * F / etp, (h + 1) * F / etp)`
    /// of each expert's hidden width. With 1, rank t of tp routes the tokens `[t * T / tp, (t + 1) * T / tp)` instead.
    pub etp: Axis,
    /// tokens enter and leave split over tp, instead of replicated
    pub sequence_parallel: bool,
}

impl Place {
    /// The place of a rank that has the whole layer.
    pub const ALONE: Self = Self { ep: Axis::ONE, tp: Axis::ONE, etp: Axis::ONE, sequence_parallel: false };

    /// Whether the ranks of tp split tokens, not experts.
    pub fn splits_tokens(&self) -> bool {
        self.tp.size > 1 && self.etp.size == 1
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::ALONE
    }
}

/// What a rank has of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// its routed experts
    pub experts: Range<usize>,
    /// its slice of their hidden width
    pub hidden: Range<usize>,
    /// its slice of the shared experts' hidden width
    pub shared_hidden: Range<usize>,
}

impl MoeConfig {
    /// What the rank at `place` has of the layer.
    pub fn part(&self) -> Part {
        let Place { ep, tp, etp, .. } = self.place;
        Part {
            experts: ep.share(self.experts),
            hidden: etp.share(self.hidden),
            shared_hidden: tp.share(self.shared.map_or(0, |shared| shared.hidden)),
        }
    }

    /// The layer as one rank would have it.
    pub fn whole(&self) -> Self {
        Self { place: Place::ALONE, ..*self }
    }

    pub(super) fn check_place(&self) -> Result<(), ConfigError> {
        let Place { ep, tp, etp, .. } = self.place;
        for (field, axis) in [("place.ep", ep), ("place.tp", tp), ("place.etp", etp)] {
            if axis.rank >= axis.size {
                let got = format!("rank {} of {}", axis.rank, axis.size);
                return Err(wrong(field, got, "ranks count from 0 and are below the size"));
            }
        }
        if etp != Axis::ONE && etp != tp {
            let got = format!("rank {} of {}", etp.rank, etp.size);
            let wanted = format!("must be rank 0 of 1, or that of tp, rank {} of {}", tp.rank, tp.size);
            return Err(wrong("place.etp", got, wanted));
        }
        let shared = self.shared.map_or(0, |shared| shared.hidden);
        for (field, size, of, len) in [
            ("place.ep", ep.size, "experts", self.experts),
            ("place.etp", etp.size, "hidden", self.hidden),
            ("place.tp", tp.size, "shared.hidden", shared),
        ] {
            if !len.is_multiple_of(size) {
                return Err(wrong(field, format!("{size} ranks"), format!("must divide {of} = {len}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SharedExperts, Sizes};

    fn at(place: Place) -> MoeConfig {
        let mut config =
            MoeConfig::new(Sizes { width: 3, hidden: 6, experts: 4, top_k: 2 }).expect("a good layer");
        config.shared = Some(SharedExperts { hidden: 8, gated: true });
        config.place = place;
        config
    }

    #[test]
    fn shares_are_disjoint_and_cover_everything() {
        for (size, len) in [(1, 5), (3, 13), (4, 2), (8, 0), (2, usize::MAX)] {
            let shares: alloc::vec::Vec<_> = (0..size).map(|rank| Axis { size, rank }.share(len)).collect();
            assert_eq!((shares[0].start, shares[size - 1].end), (0, len));
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }

    #[test]
    fn degrees_that_do_not_divide_are_refused_by_name() {
        let axis = |rank, size| Axis { rank, size };
        let cases = [
            (Place { ep: axis(0, 3), ..Place::ALONE }, "place.ep"),
            (Place { ep: axis(2, 2), ..Place::ALONE }, "place.ep"),
            (Place { tp: axis(1, 3), ..Place::ALONE }, "place.tp"),
            (Place { tp: axis(0, 4), etp: axis(0, 4), ..Place::ALONE }, "place.etp"),
            (Place { tp: axis(0, 4), etp: axis(0, 2), ..Place::ALONE }, "place.etp"),
            (Place { tp: axis(0, 2), etp: axis(1, 2), ..Place::ALONE }, "place.etp"),
            (Place { tp: axis(0, 0), ..Place::ALONE }, "place.tp"),
        ];
        for (place, field) in cases {
            assert_eq!(at(place).validate().expect_err("a bad place").field, field, "{place:?}");
        }
        let good = Place { ep: axis(3, 4), tp: axis(1, 2), etp: axis(1, 2), sequence_parallel: true };
        assert!(at(good).validate().is_ok());
    }

    #[test]
    fn the_parts_of_all_ranks_make_up_every_tensor_once() {
        let (tp, ep) = (2, 4);
        let whole = at(Place::ALONE).tensors();
        let mut seen = whole.map(|spec| alloc::vec![0; spec.map_or(0, |spec| spec.len())]);
        for rank in 0..tp * ep {
            let tp = Axis { rank: rank % tp, size: tp };
            let place =
                Place { ep: Axis { rank: rank / 2, size: ep }, tp, etp: tp, sequence_parallel: false };
            for (seen, spec) in seen.iter_mut().zip(at(place).tensors()) {
                let Some(spec) = spec else { continue };
                assert_eq!(spec.runs().map(|run| run.len()).sum::<usize>(), spec.len(), "{}", spec.name);
                spec.runs().flatten().for_each(|at| seen[at] += 1);
            }
        }
        for (seen, spec) in seen.iter().zip(whole) {
            let Some(spec) = spec else { continue };
            let copies = match spec.name {
                "gate" | "shared.gate" => 8,
                "shared.w13" | "shared.w2" => 4,
                _ => 1,
            };
            assert!(seen.iter().all(|count| *count == copies), "{}", spec.name);
        }
    }
}
