//! Merge: one block scans the counts, then a thread per row finds its place.

use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{Merge, MergeArgs, MergeDims};
use moe_core::{Kernel, Out, Path};

pub(super) static IMAGE: Image = image!("merge", [], single: ["merge_pairs": 0, "merge_index": 0]);

const SCAN_THREADS: u32 = 1024;
const THREADS: u32 = 256;

/// `MergeParams` of `kernels/merge.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MergeParams {
    counts: Address,
    offsets: Address,
    index: Address,
    overflow: Address,
    before: Address,
    position: Address,
    first_row: Address,
    ranks: u32,
    experts: u32,
    pitch: u32,
    rows: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for MergeParams {}

impl Kernel<Merge> for Cuda {
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
    ) -> Result<Path, CudaError> {
        let call = Call::<Merge>::new(self, stream, dims, &args)?;
        let pairs = (dims.ranks * dims.experts) as u64;
        let before = call.scratch(scratch, Kernel::<Merge>::scratch(self, dims))?;
        let position = before + pairs * size_of::<u64>() as u64;
        let params = MergeParams {
            counts: call.read("counts", args.counts)?,
            offsets: call.write("offsets", args.offsets)?,
            index: call.write("index", args.index)?,
            overflow: call.write("overflow", args.overflow)?,
            before,
            position,
            first_row: position + pairs * size_of::<u32>() as u64,
            ranks: dims.ranks as u32,
            experts: dims.experts as u32,
            pitch: dims.pitch as u32,
            rows: dims.rows as u32,
        };
        call.launch("merge_pairs", Grid::new(1, SCAN_THREADS), &params)?;
        call.launch("merge_index", Grid::new(dims.rows.div_ceil(THREADS as usize), THREADS), &params)?;
        Ok(Path("general"))
    }
}
