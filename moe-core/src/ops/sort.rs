//! Sort: rows by expert, then token, then slot.
//!
//! A stable counting sort of the slots by expert id. `row_of_slot[slot]` is a slot's row, or [`NO_ROW`] if it is dropped;
//! `slot_of_row` is the inverse; rows of expert e are `offsets[e]..offsets[e + 1]`. With a capacity an expert keeps its first
//! slots, or with `weights` its heaviest (ties: lower slot; NaN is lightest); kept slots stay in slot order. A slot whose id
//! is no expert is dropped too.

use super::NO_ROW;
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect, within};
use crate::host::Host;
use crate::scalar::Scalar;
use crate::view::{In, Out, View};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::marker::PhantomData;

/// Stable sort of slots by expert; `T` is the storage type that the weights belong to.
pub struct Sort<T>(PhantomData<T>);

/// Sizes of [`Sort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SortDims {
    /// N = T * K
    pub slots: usize,
    /// E
    pub experts: usize,
    /// most rows of one expert; `None`: no slot is dropped for want of room
    pub capacity: Option<usize>,
}

/// Views of [`Sort`].
pub struct SortArgs<'a, D: Device, T: Scalar> {
    /// (slots)
    pub ids: In<'a, D, u32>,
    /// (slots): drop the lightest instead of the last
    pub weights: Option<In<'a, D, T::Acc>>,
    /// (experts + 1), overwritten
    pub offsets: Out<'a, D, u32>,
    /// (slots), overwritten
    pub row_of_slot: Out<'a, D, u32>,
    /// (slots), overwritten up to the number of rows
    pub slot_of_row: Out<'a, D, u32>,
    /// (experts), overwritten: slots per expert before drops
    pub counts: Out<'a, D, u32>,
    /// (1), overwritten: slots without a row
    pub dropped: Out<'a, D, u32>,
}

impl<T: Scalar> Op for Sort<T> {
    const ID: OpId = OpId("sort");
    type Dims = SortDims;
    type Args<'a, D: Device> = SortArgs<'a, D, T>;

    fn check<D: Device>(dims: &SortDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        let SortDims { slots, experts, .. } = *dims;
        within(Self::ID, "slots", 0, u32::MAX as usize - 1, slots)?;
        within(Self::ID, "experts", 1, i32::MAX as usize, experts)?;
        expect(Self::ID, "ids", &[slots], args.ids.len())?;
        if let Some(weights) = &args.weights {
            expect(Self::ID, "weights", &[slots], weights.len())?;
        }
        expect(Self::ID, "offsets", &[experts + 1], args.offsets.len())?;
        expect(Self::ID, "row_of_slot", &[slots], args.row_of_slot.len())?;
        expect(Self::ID, "slot_of_row", &[slots], args.slot_of_row.len())?;
        expect(Self::ID, "counts", &[experts], args.counts.len())?;
        expect(Self::ID, "dropped", &[1], args.dropped.len())
    }

    fn reference(dims: &SortDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (ids, weights) = (args.ids.host(), args.weights.map(View::host));
        let (rows, slots_of, offsets) =
            (args.row_of_slot.host(), args.slot_of_row.host(), args.offsets.host());
        let counts = args.counts.host();
        rows.fill(NO_ROW);
        let mut row = 0;
        for expert in 0..dims.experts {
            offsets[expert] = row as u32;
            let mut slots: Vec<usize> =
                (0..dims.slots).filter(|slot| ids[*slot] as usize == expert).collect();
            counts[expert] = slots.len() as u32;
            if let Some(weights) = weights {
                slots.sort_by(|a, b| heavier(weights[*a], weights[*b]));
            }
            slots.truncate(dims.capacity.unwrap_or(dims.slots));
            slots.sort_unstable();
            for slot in slots {
                rows[slot] = row as u32;
                slots_of[row] = slot as u32;
                row += 1;
            }
        }
        offsets[dims.experts] = row as u32;
        args.dropped.host()[0] = (dims.slots - row) as u32;
        Ok(())
    }
}

/// Descending; NaN last.
fn heavier<A: PartialOrd>(a: A, b: A) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| {
        let nan = |v: &A| v.partial_cmp(v).is_none();
        nan(&a).cmp(&nan(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::ViewMut;

    fn sort(
        ids: &[u32],
        weights: Option<&[f32]>,
        capacity: Option<usize>,
    ) -> (Vec<u32>, Vec<u32>, [u32; 3], u32) {
        let dims = SortDims { slots: ids.len(), experts: 2, capacity };
        let (mut offsets, mut counts, mut dropped) = ([9; 3], [9; 2], [9]);
        let (mut rows, mut slots) = (alloc::vec![9; ids.len()], alloc::vec![9; ids.len()]);
        let args = SortArgs::<Host, f32> {
            ids: View::of(ids),
            weights: weights.map(View::of),
            offsets: ViewMut::of(&mut offsets),
            row_of_slot: ViewMut::of(&mut rows),
            slot_of_row: ViewMut::of(&mut slots),
            counts: ViewMut::of(&mut counts),
            dropped: ViewMut::of(&mut dropped),
        };
        Sort::<f32>::check(&dims, &args).unwrap();
        Sort::<f32>::reference(&dims, args).unwrap();
        slots.truncate(offsets[2] as usize);
        (rows, slots, offsets, dropped[0])
    }

    #[test]
    fn rows_are_in_the_order_of_expert_then_slot() {
        let (rows, slots, offsets, dropped) = sort(&[1, 0, 1, 0], None, None);
        assert_eq!((rows, slots), (alloc::vec![2, 0, 3, 1], alloc::vec![1, 3, 0, 2]));
        assert_eq!((offsets, dropped), ([0, 2, 4], 0));
    }

    #[test]
    fn a_slot_of_no_expert_is_dropped() {
        let (rows, slots, offsets, dropped) = sort(&[2, 0, u32::MAX], None, None);
        assert_eq!((rows, slots), (alloc::vec![NO_ROW, 0, NO_ROW], alloc::vec![1]));
        assert_eq!((offsets, dropped), ([0, 1, 1], 2));
    }

    #[test]
    fn capacity_drops_the_last_or_the_lightest() {
        let ids = [0, 0, 0, 0];
        assert_eq!(sort(&ids, None, Some(2)).1, [0, 1]);
        let weights = [f32::NAN, 0.2, 0.5, 0.2];
        assert_eq!(sort(&ids, Some(&weights), Some(2)).1, [1, 2]);
        assert_eq!(sort(&ids, Some(&weights), Some(2)).3, 2);
    }
}
