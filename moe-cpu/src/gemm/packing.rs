//! Weights of the expert ops in packed form: sizes, packing, and the way back from bytes.

use super::fill::pack;
use super::float::{Float, Lanes};
use super::grouped::Crew;
use super::isa::Unit;
use super::panel::{Order, Size, Weights};
use super::shared::Shared;
use super::tasks::share;
use super::tile::BLOCK;
use crate::device::Cpu;
use half::bf16;
use moe_core::ops::{PackDims, PackUse, Weight};
use moe_core::{DType, OpId, ShapeError, expect};

/// Memory of devices starts on a cache line, but a caller may cut a view anywhere.
const MISPLACED: &str = "does not start on a whole element";

/// The product that weights are packed for, and how the plain ones lie.
pub(crate) fn form(dims: &PackDims) -> (Size, Order) {
    match dims.use_ {
        PackUse::UpBwd | PackUse::DownBwd => (Size { n: dims.cols, k: dims.rows }, Order::ByDepth),
        _ => (Size { n: dims.rows, k: dims.cols }, Order::ByColumn),
    }
}

/// Bytes of packed weights of type `dtype`; 0 if that does not fit in the address space.
pub(crate) fn packed_len(unit: Unit, dtype: DType, dims: &PackDims) -> usize {
    let (size, _) = form(dims);
    let (step, behind) = if dtype == DType::Bf16 { (bf16::STEP, bf16::BEHIND) } else { (1, 0) };
    let bytes = || {
        let columns = size.n.checked_next_multiple_of(unit.cols())?;
        let depth = size.k.checked_next_multiple_of(step)?;
        let elements = columns.checked_mul(depth)?.checked_mul(dims.groups)?;
        elements.checked_add(behind)?.checked_mul(dtype.size())
    };
    bytes().unwrap_or(0)
}

/// The weights of an op: plain elements as they are, packed bytes after a look at their number and place.
///
/// # Errors
/// [`ShapeError`] if packed bytes are not as many as [`packed_len`] says, or do not start on a whole element.
pub(crate) fn weights<'a, T: Float>(
    unit: Unit,
    (op, what): (OpId, &'static str),
    weight: Weight<'a, Cpu, T>,
    dims: &PackDims,
) -> Result<Weights<'a, T>, ShapeError> {
    match weight {
        Weight::Plain(plain) => Ok(Weights::Plain(plain.host(), form(dims).1)),
        Weight::Packed(packed) => {
            expect(op, what, &[packed_len(unit, T::DTYPE, dims)], packed.len())?;
            let packed = packed.host();
            if packed.is_empty() {
                return Ok(Weights::Packed(&[]));
            }
            let elements = bytemuck::try_cast_slice(packed);
            elements.map(Weights::Packed).map_err(|_| ShapeError::Combination { op, what, why: MISPLACED })
        }
    }
}

/// Packs the weights of all groups.
///
/// # Errors
/// [`ShapeError`] as for [`weights`].
pub(crate) fn pack_all<T: Float>(
    crew: &Crew,
    op: OpId,
    dims: &PackDims,
    plain: &[T],
    packed: &mut [u8],
) -> Result<(), ShapeError> {
    let (unit, (size, order)) = (crew.unit, form(dims));
    expect(op, "packed", &[packed_len(unit, T::DTYPE, dims)], packed.len())?;
    if packed.is_empty() {
        return Ok(());
    }
    let misplaced = |_| ShapeError::Combination { op, what: "packed", why: MISPLACED };
    let packed = bytemuck::try_cast_slice_mut(packed).map_err(misplaced)?;
    let (packed, len, panels) = (Shared::<T>::new(packed), size.panel::<T>(unit), size.panels(unit));
    share(crew.threads, dims.groups * panels, &mut [], 0, |queue, _| {
        for task in queue {
            // SAFETY: each task has its own panel.
            let place = unsafe { packed.part(task * len..(task + 1) * len) };
            let (group, panel) = (task / panels, task % panels);
            let matrix = &plain[group * size.n * size.k..][..size.n * size.k];
            let columns = panel * unit.cols()..size.n.min((panel + 1) * unit.cols());
            for (block, place) in place.chunks_mut(BLOCK * unit.cols()).enumerate() {
                let depth = block * BLOCK..size.k.min((block + 1) * BLOCK);
                pack(unit, matrix, order, size, columns.clone(), depth, place);
            }
        }
    });
    Ok(())
}
