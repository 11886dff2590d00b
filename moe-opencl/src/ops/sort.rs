//! Sort: four launches, each group with a range of slots; a fifth to drop by weight.

use super::{Float, threads};
use crate::call::{Call, Grid, Params, Place};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{NO_STORAGE, Source, source};
use crate::stream::Stream;
use moe_core::ops::{Sort, SortArgs, SortDims};
use moe_core::{DType, Kernel, Out, Path};

pub(super) static SOURCE: Source = source!("sort", ["scan"], NO_STORAGE);

/// Most counters in the table, unless one range has more.
const TABLE: usize = 1 << 24;

/// `SortParams` of `kernels/sort.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SortParams {
    slots: u32,
    experts: u32,
    capacity: u32,
    ranges: u32,
    range: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for SortParams {}

/// Ranges of slots, were the table not bounded: 1024 slots or more each.
fn ranges(dims: &SortDims) -> usize {
    dims.slots.div_ceil(1024).clamp(1, 256)
}

/// Elements of scratch memory: the table, starts, list. They grow with every size.
fn layout(dims: &SortDims) -> [usize; 3] {
    let table = dims.experts.saturating_mul(ranges(dims)).min(TABLE).max(dims.experts);
    if dims.capacity.is_some() { [table, dims.experts, dims.slots] } else { [table, 0, 0] }
}

impl<T: Float> Kernel<Sort<T>> for OpenCl {
    fn scratch(&self, dims: &SortDims) -> usize {
        layout(dims).iter().sum::<usize>().saturating_mul(size_of::<u32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &SortDims,
        args: SortArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let call = Call::<Sort<T>>::new(self, stream, (&SOURCE, DType::U32), dims, &args)?;
        let capacity = dims.capacity.unwrap_or(dims.slots).min(dims.slots);
        let weighed = args.weights.filter(|_| 0 < capacity && capacity < dims.slots);
        let (threads, ranges) = (threads(self.facts()), ranges(dims).min(TABLE / dims.experts).max(1));
        let range = dims.slots.div_ceil(ranges).next_multiple_of(threads);
        let params = SortParams {
            slots: dims.slots as u32,
            experts: dims.experts as u32,
            capacity: capacity as u32,
            ranges: ranges as u32,
            range: range.min(u32::MAX as usize) as u32,
        };
        let [table_len, starts_len, _] = layout(dims);
        let table = call.scratch(scratch, Kernel::<Sort<T>>::scratch(self, dims))?.of::<u32>();
        let ids = call.read("ids", args.ids)?;
        let (offsets, dropped) = (call.write("offsets", args.offsets)?, call.write("dropped", args.dropped)?);
        let (counts, rows) =
            (call.write("counts", args.counts)?, call.write("row_of_slot", args.row_of_slot)?);
        let slots = call.write("slot_of_row", args.slot_of_row)?;

        let by_range = Grid::new(ranges, threads);
        call.launch("sort_count", by_range, &[ids, table], &params)?;
        let by_expert = Grid::new(dims.experts.div_ceil(threads), threads);
        call.launch("sort_sum", by_expert, &[table, counts], &params)?;
        let Some(weights) = weighed else {
            let places = [counts, offsets, dropped, Place::NONE];
            call.launch("sort_offsets", Grid::new(1, threads), &places, &params)?;
            call.launch("sort_place", by_range, &[ids, table, offsets, rows, slots], &params)?;
            return Ok(Path("ranges"));
        };
        let weights = call.read("weights", weights)?;
        let (starts, list) = (table.after(table_len), table.after(table_len + starts_len));
        call.launch("sort_offsets", Grid::new(1, threads), &[counts, offsets, dropped, starts], &params)?;
        let all = SortParams { capacity: dims.slots as u32, ..params };
        call.launch("sort_place", by_range, &[ids, table, starts, rows, list], &all)?;
        let places = [weights, counts, offsets, starts, list, rows, slots];
        call.launch("sort_weigh", Grid::new(dims.experts, threads), &places, &params)?;
        Ok(Path("ranges, by weight"))
    }
}
