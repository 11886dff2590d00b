//! Merge has the reference's index, also where rows find no room.

use super::{below, cpus, launch};
use moe_core::ops::{Merge, MergeArgs, MergeDims};
use moe_core::{Host, View, ViewMut};

fn agree(counts: &[u32], dims: MergeDims) {
    macro_rules! merge {
        ($device:expr) => {{
            let (mut offsets, mut overflow) = (vec![9; dims.experts + 1], [9]);
            let mut index = vec![9; dims.rows];
            let args = MergeArgs {
                counts: View::of(counts),
                offsets: ViewMut::of(&mut offsets),
                index: ViewMut::of(&mut index),
                overflow: ViewMut::of(&mut overflow),
            };
            launch!($device, Merge, dims, args).unwrap();
            (offsets, index, overflow)
        }};
    }
    let want = merge!(&Host);
    for cpu in cpus() {
        assert_eq!(merge!(&cpu), want, "{cpu:?} {dims:?}");
    }
}

#[test]
fn segments_end_to_end_and_apart() {
    for (ranks, experts) in [(0, 3), (1, 1), (3, 5), (8, 16)] {
        let counts = below(20, ranks * experts, 5);
        let all = counts.iter().sum::<u32>() as usize;
        for rows in [0, 1, all / 2, all, all + 7] {
            for pitch in
                [1, 3, usize::MAX].map(|part| rows.checked_div(part.saturating_mul(ranks)).unwrap_or(0))
            {
                agree(&counts, MergeDims { ranks, experts, pitch, rows });
            }
        }
    }
}

#[test]
fn counts_beyond_all_memory_overflow() {
    let most = 1 << 20;
    agree(&[most, 3, most, 1], MergeDims { ranks: 2, experts: 2, pitch: 0, rows: 10 });
    agree(&[1, most, most, most], MergeDims { ranks: 2, experts: 2, pitch: 4, rows: 10 });
}
