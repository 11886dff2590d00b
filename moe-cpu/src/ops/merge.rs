//! Merge: one pass over the counts, a run of positions for each.

use super::ready;
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{SLACK, Scratch, bytes};
use moe_core::ops::{Merge, MergeArgs, MergeDims};
use moe_core::{Kernel, Out, Path};

impl Kernel<Merge> for Cpu {
    fn scratch(&self, dims: &MergeDims) -> usize {
        // Without experts there are no counts to bound the number of ranks.
        SLACK + if dims.experts > 0 { 2 * bytes::<u32>(dims.ranks) } else { 0 }
    }

    fn launch(
        &self,
        (): &(),
        dims: &MergeDims,
        args: MergeArgs<'_, Self>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<Merge>(self, dims, &args, scratch.len())?;
        let MergeDims { experts, pitch, rows, .. } = *dims;
        let ranks = if experts > 0 { dims.ranks } else { 0 };
        let (counts, offsets, index) = (args.counts.host(), args.offsets.host(), args.index.host());
        // The next position of each rank's segment, and the segment's end. Positions stop at `rows`, which fits in 32 bits.
        let mut scratch = Scratch::new(scratch.host());
        let (next, ends) = (scratch.take::<u32>(ranks), scratch.take::<u32>(ranks));
        let mut start = 0;
        for rank in 0..ranks {
            if pitch > 0 {
                start = rank * pitch;
            }
            let total: u64 = counts[rank * experts..][..experts].iter().map(|count| u64::from(*count)).sum();
            next[rank] = start as u32;
            ends[rank] = if pitch > 0 { (start + pitch) as u32 } else { rows as u32 };
            start = rows.min(start.saturating_add(usize::try_from(total).unwrap_or(rows)));
        }
        let (mut row, mut overflow) = (0, 0_u64);
        for expert in 0..experts {
            offsets[expert] = row as u32;
            for rank in 0..ranks {
                let count = counts[rank * experts + expert];
                let room = (ends[rank] - next[rank]).min((rows - row) as u32);
                let kept = count.min(room);
                for (place, position) in index[row..row + kept as usize].iter_mut().zip(next[rank]..) {
                    *place = position;
                }
                row += kept as usize;
                overflow += u64::from(count - kept);
                next[rank] = next[rank].saturating_add(count).min(ends[rank]);
            }
        }
        offsets[experts] = row as u32;
        args.overflow.host()[0] = u32::try_from(overflow).unwrap_or(u32::MAX);
        Ok(Path(if pitch > 0 { "pitched" } else { "packed" }))
    }
}
