//! Merge and Gather: what is sent by destination is found again by expert.

use crate::run::{read, run, write};
use moe_core::ops::{Gather, GatherArgs, GatherDims, Merge, MergeArgs, MergeDims};
use proptest::prelude::*;

fn merge(dims: MergeDims, counts: &[u32]) -> (Vec<u32>, Vec<u32>, u32) {
    let (mut offsets, mut index) = (vec![0; dims.experts + 1], vec![u32::MAX; dims.rows]);
    let mut overflow = 0;
    let args = MergeArgs {
        counts: read(counts),
        offsets: write(&mut offsets),
        index: write(&mut index),
        overflow: write(std::slice::from_mut(&mut overflow)),
    };
    run::<Merge>(dims, args);
    index.truncate(offsets[dims.experts] as usize);
    (offsets, index, overflow)
}

fn counts() -> impl Strategy<Value = (usize, usize, Vec<u32>)> {
    (1_usize..5, 1_usize..5).prop_flat_map(|(ranks, experts)| {
        (Just(ranks), Just(experts), prop::collection::vec(0_u32..5, ranks * experts))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rows_come_by_expert_then_source_then_place((ranks, experts, counts) in counts(), pitched: bool) {
        let pitch = if pitched { 20 } else { 0 };
        let (offsets, index, overflow) = merge(MergeDims { ranks, experts, pitch, rows: 80 }, &counts);
        // (expert, position in the receive buffer), in the order that the rows were sent.
        let mut sent = Vec::new();
        for rank in 0..ranks {
            let mut position = if pitched { rank * pitch } else { sent.len() };
            for expert in 0..experts {
                for _ in 0..counts[rank * experts + expert] {
                    sent.push((expert, position as u32));
                    position += 1;
                }
            }
        }
        sent.sort_by_key(|(expert, _)| *expert);
        prop_assert_eq!(overflow, 0);
        prop_assert_eq!(&index, &sent.iter().map(|(_, position)| *position).collect::<Vec<_>>());
        for expert in 0..experts {
            let rows = (offsets[expert + 1] - offsets[expert]) as usize;
            prop_assert_eq!(rows, sent.iter().filter(|(e, _)| *e == expert).count());
        }
    }

    #[test]
    fn a_row_is_merged_or_counted_as_overflow((ranks, experts, counts) in counts(), rows in 0_usize..40, pitched: bool) {
        let pitch = if pitched { rows / ranks } else { 0 };
        let (offsets, index, overflow) = merge(MergeDims { ranks, experts, pitch, rows }, &counts);
        prop_assert_eq!(offsets[experts] + overflow, counts.iter().sum::<u32>());
        let mut places = index.clone();
        places.sort_unstable();
        places.dedup();
        prop_assert_eq!(places.len(), index.len());
        prop_assert!(index.iter().all(|place| (*place as usize) < rows));
    }
}

#[test]
fn equal_splits_leave_the_rest_of_a_segment_alone() {
    let dims = GatherDims { sources: 3, fan: 1, rows: 3, width: 1, groups: 2, pitch: 2 };
    let mut out = [9.0_f32; 4];
    let args = GatherArgs {
        source: read(&[1.0, 2.0, 3.0]),
        index: read(&[2, 0, 1]),
        offsets: read(&[0, 1, 3]),
        out: write(&mut out),
    };
    run::<Gather<f32>>(dims, args);
    assert_eq!(out, [3.0, 9.0, 1.0, 2.0]);
}
