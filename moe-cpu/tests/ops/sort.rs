//! Sort has the reference's order.

use super::{below, cpus, launch, values};
use moe_core::ops::{Sort, SortArgs, SortDims};
use moe_core::{Host, View, ViewMut};

fn agree(ids: &[u32], weights: Option<&[f32]>, dims: SortDims) {
    macro_rules! sort {
        ($device:expr) => {{
            let (mut offsets, mut counts, mut dropped) =
                (vec![9; dims.experts + 1], vec![9; dims.experts], [9]);
            let (mut rows, mut slots) = (vec![9; ids.len()], vec![9; ids.len()]);
            let args = SortArgs {
                ids: View::of(ids),
                weights: weights.map(View::of),
                offsets: ViewMut::of(&mut offsets),
                row_of_slot: ViewMut::of(&mut rows),
                slot_of_row: ViewMut::of(&mut slots),
                counts: ViewMut::of(&mut counts),
                dropped: ViewMut::of(&mut dropped),
            };
            launch!($device, Sort<f32>, dims, args).unwrap();
            (offsets, counts, dropped, rows, slots)
        }};
    }
    let want = sort!(&Host);
    for cpu in cpus() {
        assert!(sort!(&cpu) == want, "{cpu:?} {dims:?}");
    }
}

#[test]
fn stable_with_and_without_room() {
    for (slots, experts) in [(0, 3), (1, 1), (5, 9), (1000, 7), (20_000, 33)] {
        let ids = below(experts + 1, slots, 3);
        let mut weights = values::<f32>(slots, 4);
        weights.iter_mut().for_each(|weight| *weight = (*weight * 20.0).round());
        weights.iter_mut().step_by(17).for_each(|weight| *weight = f32::NAN);
        for capacity in [None, Some(0), Some(1), Some(slots / experts), Some(slots), Some(usize::MAX)] {
            let dims = SortDims { slots, experts, capacity };
            agree(&ids, None, dims);
            agree(&ids, Some(&weights), dims);
        }
    }
}

#[test]
fn ids_of_no_expert_are_dropped() {
    let ids = [u32::MAX, 5, 4, 0, 4, 7];
    agree(&ids, None, SortDims { slots: 6, experts: 5, capacity: None });
    agree(&[9; 10_000], None, SortDims { slots: 10_000, experts: 5, capacity: Some(3) });
}
