//! Merge: one group scans the counts, then a work item per row finds its place.

use super::threads;
use crate::call::{Call, Grid, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{NO_STORAGE, Source, source};
use crate::stream::Stream;
use moe_core::ops::{Merge, MergeArgs, MergeDims};
use moe_core::{DType, Kernel, Out, Path};

pub(super) static SOURCE: Source = source!("merge", ["scan"], NO_STORAGE);

/// `MergeParams` of `kernels/merge.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MergeParams {
    ranks: u32,
    experts: u32,
    pitch: u32,
    rows: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for MergeParams {}

impl Kernel<Merge> for OpenCl {
    fn scratch(&self, dims: &MergeDims) -> usize {
        let pairs = dims.ranks.saturating_mul(dims.experts);
        pairs.saturating_mul(size_of::<u64>() + 2 * size_of::<u32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &MergeDims,
        args: MergeArgs<'_, Self>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let call = Call::<Merge>::new(self, stream, (&SOURCE, DType::U32), dims, &args)?;
        let pairs = dims.ranks * dims.experts;
        let scratch = call.scratch(scratch, Kernel::<Merge>::scratch(self, dims))?;
        let before = scratch.of::<u64>();
        let position = scratch.of::<u32>().after(2 * pairs);
        let first_row = position.after(pairs);
        let (counts, offsets) = (call.read("counts", args.counts)?, call.write("offsets", args.offsets)?);
        let (index, overflow) = (call.write("index", args.index)?, call.write("overflow", args.overflow)?);
        let params = MergeParams {
            ranks: dims.ranks as u32,
            experts: dims.experts as u32,
            pitch: dims.pitch as u32,
            rows: dims.rows as u32,
        };
        let threads = threads(self.facts());
        let pairs = [counts, offsets, overflow, before, position, first_row];
        call.launch("merge_pairs", Grid::new(1, threads), &pairs, &params)?;
        let grid = Grid::new(dims.rows.div_ceil(threads), threads);
        call.launch("merge_index", grid, &[offsets, position, first_row, index], &params)?;
        Ok(Path("general"))
    }
}
