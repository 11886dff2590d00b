//! Sort: few slots in one block; many in three launches, each block with a range of slots; a fourth to drop by weight.

use super::Float;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{Sort, SortArgs, SortDims};
use moe_core::{Kernel, Out, Path};

pub(super) static IMAGE: Image = image!("sort", [], single: [
    "sort_count": 0, "sort_sum": 0, "sort_place": 0, "sort_one": 0, "sort_weigh": 0,
]);

const THREADS: u32 = 256;
const WARPS: usize = 8;
const WEIGH_THREADS: u32 = 1024;
/// Most slots that one block sorts.
const FEW: usize = 4096;
/// Counters that fit into a block's shared memory, beside what the kernels need.
const SHARED: usize = 10 << 10;
/// Most counters in the table, unless one range has more.
const TABLE: usize = 1 << 24;

/// `SortParams` of `kernels/sort.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SortParams {
    ids: Address,
    weights: Address,
    offsets: Address,
    row_of_slot: Address,
    slot_of_row: Address,
    counts: Address,
    dropped: Address,
    table: Address,
    ticket: Address,
    starts: Address,
    list: Address,
    slots: u32,
    experts: u32,
    capacity: u32,
    blocks: u32,
    in_shared: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for SortParams {}

/// Ranges of slots, were the table not bounded: 1024 slots or more each.
fn ranges(dims: &SortDims) -> usize {
    dims.slots.div_ceil(1024).clamp(1, 256)
}

/// Elements of scratch memory: the ticket, the table, starts, list. They grow with every size.
fn layout(dims: &SortDims) -> [usize; 4] {
    let table = dims.experts.saturating_mul(ranges(dims)).min(TABLE).max(dims.experts);
    let weighed = if dims.capacity.is_some() { [dims.experts, dims.slots] } else { [0, 0] };
    [1, table, weighed[0], weighed[1]]
}

impl<T: Float> Kernel<Sort<T>> for Cuda {
    fn scratch(&self, dims: &SortDims) -> usize {
        layout(dims).iter().sum::<usize>().saturating_mul(size_of::<u32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &SortDims,
        args: SortArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<Sort<T>>::new(self, stream, dims, &args)?;
        let capacity = dims.capacity.unwrap_or(dims.slots).min(dims.slots);
        let weighed = args.weights.is_some() && 0 < capacity && capacity < dims.slots;
        let blocks = ranges(dims).min(TABLE / dims.experts).max(1);
        let [ticket, table, starts, _] = layout(dims);
        let scratch = call.scratch(scratch, Kernel::<Sort<T>>::scratch(self, dims))?;
        let at = |elements: usize| scratch + (elements * size_of::<u32>()) as u64;
        let weighed_at = |elements| if weighed { at(elements) } else { 0 };
        let params = SortParams {
            ids: call.read("ids", args.ids)?,
            weights: call.read_some("weights", args.weights)?,
            offsets: call.write("offsets", args.offsets)?,
            row_of_slot: call.write("row_of_slot", args.row_of_slot)?,
            slot_of_row: call.write("slot_of_row", args.slot_of_row)?,
            counts: call.write("counts", args.counts)?,
            dropped: call.write("dropped", args.dropped)?,
            ticket: at(0),
            table: at(ticket),
            starts: weighed_at(ticket + table),
            list: weighed_at(ticket + table + starts),
            slots: dims.slots as u32,
            experts: dims.experts as u32,
            capacity: capacity as u32,
            blocks: blocks as u32,
            in_shared: u32::from(dims.experts <= SHARED),
        };
        let counters = |per_expert: usize| (per_expert * dims.experts * size_of::<u32>()) as u32;
        if !weighed && dims.slots <= FEW && dims.experts <= SHARED / WARPS {
            call.launch("sort_one", Grid::new(1, THREADS).shared(counters(WARPS + 1)), &params)?;
            return Ok(Path("one block"));
        }
        // 0: each range is one warp's, and its counters are those of the table.
        let warps = (SHARED / dims.experts).min(WARPS);
        let room = counters(warps.min(1));
        call.launch("sort_count", Grid::new(blocks, THREADS).shared(room), &params)?;
        call.launch("sort_sum", Grid::new(dims.experts.div_ceil(WARPS), THREADS), &params)?;
        let grid = Grid::new(blocks, 32 * warps.max(1) as u32).shared(counters(warps));
        call.launch("sort_place", grid, &params)?;
        if !weighed {
            return Ok(Path("ranges"));
        }
        call.launch("sort_weigh", Grid::new(dims.experts, WEIGH_THREADS), &params)?;
        Ok(Path("ranges, by weight"))
    }
}
