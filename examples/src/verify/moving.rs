//! Rows on the move, by ops: sort, gather, merge, combine.

use super::rig::Rig;
use anyhow::{Result, ensure};
use moe_core::ops::{
    Combine, CombineArgs, CombineDims, Gather, GatherArgs, GatherDims, Merge, MergeArgs, MergeDims, Sort,
    SortArgs, SortDims,
};
use moe_core::{MoeDevice, Scalar, whole, whole_mut};

/// The slots in the order of their experts.
pub(crate) struct Sorted {
    /// (experts + 1)
    pub(crate) offsets: Vec<u32>,
    /// (slots)
    pub(crate) row_of_slot: Vec<u32>,
    /// (rows)
    pub(crate) slot_of_row: Vec<u32>,
    /// (experts)
    pub(crate) counts: Vec<u32>,
}

/// Sorts slots by expert; none is dropped.
///
/// # Errors
/// Shape errors and the device's; if a slot was dropped all the same.
pub(crate) fn sort<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    ids: &[u32],
    experts: usize,
) -> Result<Sorted> {
    let slots = ids.len();
    let ids = rig.put(ids)?;
    let mut offsets = rig.poisoned::<u32>(experts + 1)?;
    let mut row_of_slot = rig.poisoned::<u32>(slots)?;
    let mut slot_of_row = rig.poisoned::<u32>(slots)?;
    let mut counts = rig.poisoned::<u32>(experts)?;
    let mut dropped = rig.poisoned::<u32>(1)?;
    let args = SortArgs {
        ids: whole::<D, u32>(&ids),
        weights: None,
        offsets: whole_mut::<D, u32>(&mut offsets),
        row_of_slot: whole_mut::<D, u32>(&mut row_of_slot),
        slot_of_row: whole_mut::<D, u32>(&mut slot_of_row),
        counts: whole_mut::<D, u32>(&mut counts),
        dropped: whole_mut::<D, u32>(&mut dropped),
    };
    let dims = SortDims { slots, experts, capacity: None };
    rig.launch::<Sort<T>>(&dims, args)?;
    let dropped = rig.get::<u32>(&dropped)?[0];
    ensure!(dropped == 0, "sort dropped {dropped} slots without a capacity");
    Ok(Sorted {
        offsets: rig.get::<u32>(&offsets)?,
        row_of_slot: rig.get::<u32>(&row_of_slot)?,
        slot_of_row: rig.get::<u32>(&slot_of_row)?,
        counts: rig.get::<u32>(&counts)?,
    })
}

/// Rows of expert-major order.
pub(crate) struct Merged {
    /// (experts + 1)
    pub(crate) offsets: Vec<u32>,
    /// (rows): where a row stands among the received ones
    pub(crate) index: Vec<u32>,
}

/// Expert-major order of `rows` rows received from `ranks` ranks, with `counts` (ranks, experts).
///
/// # Errors
/// Shape errors and the device's; if there was no room for all rows.
pub(crate) fn merge<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    counts: &[u32],
    ranks: usize,
    rows: usize,
) -> Result<Merged> {
    let experts = counts.len().checked_div(ranks).unwrap_or(0);
    let counts = rig.put(counts)?;
    let mut offsets = rig.poisoned::<u32>(experts + 1)?;
    let mut index = rig.poisoned::<u32>(rows)?;
    let mut overflow = rig.poisoned::<u32>(1)?;
    let dims = MergeDims { ranks, experts, pitch: 0, rows };
    let args = MergeArgs {
        counts: whole::<D, u32>(&counts),
        offsets: whole_mut::<D, u32>(&mut offsets),
        index: whole_mut::<D, u32>(&mut index),
        overflow: whole_mut::<D, u32>(&mut overflow),
    };
    rig.launch::<Merge>(&dims, args)?;
    let overflow = rig.get::<u32>(&overflow)?[0];
    ensure!(overflow == 0, "merge found no room for {overflow} of {rows} rows");
    Ok(Merged { offsets: rig.get::<u32>(&offsets)?, index: rig.get::<u32>(&index)? })
}

/// `source[index[r] / fan]` for the rows r of all groups. Rows of the result that belong to no group hold `unused`.
///
/// # Errors
/// Shape errors and the device's.
pub(crate) fn gather<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    dims: GatherDims,
    source: &[T],
    index: &[u32],
    offsets: &[u32],
    unused: T,
) -> Result<Vec<T>> {
    let (source, index, offsets) = (rig.put(source)?, rig.put(index)?, rig.put(offsets)?);
    let mut out = rig.put(&vec![unused; dims.out_rows() * dims.width])?;
    let args = GatherArgs {
        source: whole::<D, T>(&source),
        index: whole::<D, u32>(&index),
        offsets: whole::<D, u32>(&offsets),
        out: whole_mut::<D, T>(&mut out),
    };
    rig.launch::<Gather<T>>(&dims, args)?;
    rig.get::<T>(&out)
}

/// The weighted sums of each token's rows.
///
/// # Errors
/// Shape errors and the device's.
pub(crate) fn combine<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    dims: CombineDims,
    y: &[T],
    row_of_slot: &[u32],
    weights: &[f32],
) -> Result<Vec<T>> {
    let (y, rows, weights) = (rig.put(y)?, rig.put(row_of_slot)?, rig.put(weights)?);
    let mut out = rig.poisoned::<T>(dims.tokens * dims.width)?;
    let args = CombineArgs {
        y: whole::<D, T>(&y),
        row_of_slot: whole::<D, u32>(&rows),
        weights: Some(whole::<D, f32>(&weights)),
        base: [None, None, None],
        out: whole_mut::<D, T>(&mut out),
    };
    rig.launch::<Combine<T>>(&dims, args)?;
    rig.get::<T>(&out)
}
