//! Sort: permutation and inverse, offsets, stability, capacity, conservation of slots.

use crate::run::{read, run, write};
use moe_core::ops::{NO_ROW, Sort, SortArgs, SortDims};
use proptest::prelude::*;

struct Sorted {
    offsets: Vec<u32>,
    row_of_slot: Vec<u32>,
    slot_of_row: Vec<u32>,
    counts: Vec<u32>,
    dropped: u32,
}

fn sort(ids: &[u32], experts: usize, weights: Option<&[f32]>, capacity: Option<usize>) -> Sorted {
    let slots = ids.len();
    let mut sorted = Sorted {
        offsets: vec![0; experts + 1],
        row_of_slot: vec![0; slots],
        slot_of_row: vec![0; slots],
        counts: vec![0; experts],
        dropped: 0,
    };
    let args = SortArgs {
        ids: read(ids),
        weights: weights.map(read),
        offsets: write(&mut sorted.offsets),
        row_of_slot: write(&mut sorted.row_of_slot),
        slot_of_row: write(&mut sorted.slot_of_row),
        counts: write(&mut sorted.counts),
        dropped: write(std::slice::from_mut(&mut sorted.dropped)),
    };
    run::<Sort<f32>>(SortDims { slots, experts, capacity }, args);
    sorted.slot_of_row.truncate(sorted.offsets[experts] as usize);
    sorted
}

/// Experts, ids (some of which are no experts), weights with many ties, capacity.
fn slots() -> impl Strategy<Value = (usize, Vec<u32>, Vec<f32>, Option<usize>)> {
    (1_usize..7, 0_usize..60).prop_flat_map(|(experts, slots)| {
        let ids = prop::collection::vec(0..experts as u32 + 2, slots);
        let weights = prop::collection::vec((0_u8..5).prop_map(|w| f32::from(w) / 4.0), slots);
        (Just(experts), ids, weights, prop::option::of(0_usize..9))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_and_slots_are_inverse((experts, ids, weights, capacity) in slots()) {
        let sorted = sort(&ids, experts, Some(&weights), capacity);
        for (row, slot) in sorted.slot_of_row.iter().enumerate() {
            prop_assert_eq!(sorted.row_of_slot[*slot as usize], row as u32);
        }
        let placed = sorted.row_of_slot.iter().filter(|row| **row != NO_ROW).count();
        prop_assert_eq!(placed, sorted.slot_of_row.len());
    }

    #[test]
    fn an_experts_rows_are_its_slots_in_their_order((experts, ids, _, capacity) in slots()) {
        let sorted = sort(&ids, experts, None, capacity);
        prop_assert_eq!(sorted.offsets[0], 0);
        for expert in 0..experts {
            let own: Vec<u32> = (0..ids.len() as u32).filter(|s| ids[*s as usize] == expert as u32).collect();
            prop_assert_eq!(sorted.counts[expert] as usize, own.len());
            let kept = own.len().min(capacity.unwrap_or(usize::MAX));
            let rows = sorted.offsets[expert] as usize..sorted.offsets[expert + 1] as usize;
            prop_assert_eq!(&sorted.slot_of_row[rows], &own[..kept]);
        }
    }

    #[test]
    fn no_slot_is_lost((experts, ids, weights, capacity) in slots()) {
        for weights in [None, Some(&weights[..])] {
            let sorted = sort(&ids, experts, weights, capacity);
            prop_assert_eq!(sorted.slot_of_row.len() + sorted.dropped as usize, ids.len());
        }
    }

    #[test]
    fn by_score_the_lightest_and_then_the_last_are_dropped((experts, ids, weights, capacity) in slots()) {
        let sorted = sort(&ids, experts, Some(&weights), capacity);
        let placed = |slot: usize| sorted.row_of_slot[slot] != NO_ROW;
        for kept in (0..ids.len()).filter(|slot| placed(*slot)) {
            for lost in (0..ids.len()).filter(|slot| !placed(*slot) && ids[*slot] == ids[kept]) {
                prop_assert!(
                    weights[kept] > weights[lost] || weights[kept] == weights[lost] && kept < lost,
                    "slot {} was kept and slot {} dropped", kept, lost
                );
            }
        }
        let ordered = |pair: &[u32]| ids[pair[0] as usize] < ids[pair[1] as usize] || pair[0] < pair[1];
        prop_assert!(sorted.slot_of_row.windows(2).all(ordered));
    }
}

#[test]
fn a_capacity_of_nothing_drops_every_slot() {
    let sorted = sort(&[1, 0, 1], 2, None, Some(0));
    assert_eq!((sorted.offsets, sorted.dropped), (vec![0, 0, 0], 3));
    assert_eq!(sorted.counts, [1, 2]);
}

#[test]
fn no_slots_give_empty_groups() {
    let sorted = sort(&[], 3, None, None);
    assert_eq!((sorted.offsets, sorted.dropped), (vec![0; 4], 0));
}
