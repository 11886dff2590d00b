//! Gather: blocks of rows, copied.
//!
//! A store to a line that no cache holds reads it first, a third of all traffic. So an output that is too large to stay in a cache
//! is written past it.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Float, Shared, fence, share, stream};
use moe_core::ops::{Gather, GatherArgs, GatherDims};
use moe_core::{Device, Op, Out, Path, check_index, check_offsets, within};

/// Rows of a task.
const ROWS: usize = 64;
/// Bytes of an output of which a last-level cache would keep too little until it is read.
const LARGE: usize = 32 << 20;

impl<T: Float> Launch<Gather<T>> for Cpu {
    fn launch(
        &self,
        (): &(),
        dims: &GatherDims,
        args: GatherArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<Gather<T>>(self, dims, &args, scratch.len())?;
        let GatherDims { sources, fan, rows, width, groups, pitch } = *dims;
        let (source, index, offsets) = (args.source.host(), args.index.host(), args.offsets.host());
        check_offsets(Gather::<T>::ID, offsets, rows)?;
        let mut used = offsets[groups] as usize;
        check_index(Gather::<T>::ID, "index", &index[..used], sources.saturating_mul(fan))?;
        if pitch > 0 {
            for bounds in offsets.windows(2) {
                within(Gather::<T>::ID, "rows of a group", 0, pitch, (bounds[1] - bounds[0]) as usize)?;
            }
        }
        if width == 0 {
            // Nothing to copy, and places may be any number.
            used = 0;
        }
        // The group of a row is the last one that begins at or before it.
        let group = |row: usize| offsets.partition_point(|first| *first as usize <= row) - 1;
        let from = |row: usize| &source[index[row] as usize / fan * width..][..width];
        let (unit, large) = (self.unit(), used * width * size_of::<T>() >= LARGE);
        let out = Shared::new(args.out.host());
        self.enter(|| {
            share(self.threads(), used.div_ceil(ROWS), &mut [], 0, |queue, _| {
                for row in queue.flat_map(|task| task * ROWS..used.min((task + 1) * ROWS)) {
                    let place = match pitch {
                        0 => row,
                        _ => group(row) * pitch + row - offsets[group(row)] as usize,
                    };
                    // SAFETY: each row has a place of its own, since no group is longer than the pitch.
                    let place = unsafe { out.part(place * width..(place + 1) * width) };
                    if large {
                        stream(unit, from(row), place, from((row + 1).min(used - 1)));
                    } else {
                        place.copy_from_slice(from(row));
                    }
                }
                if large {
                    fence(unit);
                }
            });
        });
        Ok(Path(if pitch > 0 { "pitched" } else { "packed" }))
    }
}
