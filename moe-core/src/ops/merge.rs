//! Merge: from rows in order of (source rank, expert) to rows in order of (expert, source rank), by index.
//!
//! With expert parallelism rows arrive in one segment per source rank, each sorted by expert. Row r of the expert-major
//! order stands at position `index[r]` of the receive buffer. Segments lie end to end, or `pitch` rows apart. Nothing is
//! moved: the products gather and scatter by this index.

use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect, within};
use crate::host::Host;
use crate::view::{In, Out};

/// Expert-major order of received rows.
pub struct Merge;

/// Sizes of [`Merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeDims {
    /// source ranks
    pub ranks: usize,
    /// experts on this rank
    pub experts: usize,
    /// rows from one segment's start to the next; 0 if segments lie end to end
    pub pitch: usize,
    /// most rows in all: the receive buffer's length
    pub rows: usize,
}

/// Views of [`Merge`].
pub struct MergeArgs<'a, D: Device> {
    /// (ranks, experts)
    pub counts: In<'a, D, u32>,
    /// (experts + 1), overwritten; no offset exceeds `rows`
    pub offsets: Out<'a, D, u32>,
    /// (rows), overwritten up to the number of rows
    pub index: Out<'a, D, u32>,
    /// (1), overwritten: rows that found no room, in a segment or in the buffer
    pub overflow: Out<'a, D, u32>,
}

impl Op for Merge {
    const ID: OpId = OpId("merge");
    type Dims = MergeDims;
    type Args<'a, D: Device> = MergeArgs<'a, D>;

    fn check<D: Device>(dims: &MergeDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        let MergeDims { ranks, experts, pitch, rows } = *dims;
        within(Self::ID, "rows", 0, u32::MAX as usize - 1, rows)?;
        within(Self::ID, "experts", 0, i32::MAX as usize, experts)?;
        within(Self::ID, "pitch", 0, rows.checked_div(ranks).unwrap_or(0), pitch)?;
        expect(Self::ID, "counts", &[ranks, experts], args.counts.len())?;
        expect(Self::ID, "offsets", &[experts + 1], args.offsets.len())?;
        expect(Self::ID, "index", &[rows], args.index.len())?;
        expect(Self::ID, "overflow", &[1], args.overflow.len())
    }

    fn reference(dims: &MergeDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let MergeDims { ranks, experts, pitch, rows } = *dims;
        let (counts, offsets, index) = (args.counts.host(), args.offsets.host(), args.index.host());
        let before = |rank: usize, expert: usize| -> usize {
            counts[rank * experts..][..expert].iter().map(|count| *count as usize).sum()
        };
        let start = |rank: usize| -> usize {
            if pitch > 0 { rank * pitch } else { (0..rank).map(|rank| before(rank, experts)).sum() }
        };
        let (mut row, mut overflow) = (0, 0_usize);
        for expert in 0..experts {
            offsets[expert] = row as u32;
            for rank in 0..ranks {
                let end = if pitch > 0 { (rank + 1) * pitch } else { rows };
                for nth in 0..counts[rank * experts + expert] as usize {
                    let position = start(rank) + before(rank, expert) + nth;
                    if position < end && row < rows {
                        index[row] = position as u32;
                        row += 1;
                    } else {
                        overflow += 1;
                    }
                }
            }
        }
        offsets[experts] = row as u32;
        args.overflow.host()[0] = u32::try_from(overflow).unwrap_or(u32::MAX);
        Ok(())
    }
}
