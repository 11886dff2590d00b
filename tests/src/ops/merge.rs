//! Samples of Merge.

use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::Device;
use moe_core::ops::{Merge, MergeArgs, MergeDims};

impl Case for Merge {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        // label, ranks, experts, rows, pitch, most rows of one count
        let shapes = [
            ("end to end", 3, 4, 80, 0, 6),
            ("equal splits", 3, 4, 81, 27, 6),
            ("no room in the buffer", 4, 3, 20, 0, 9),
            ("no room in a segment", 4, 3, 20, 5, 4),
            ("one rank", 1, 7, 50, 0, 7),
            ("one expert", 5, 1, 40, 8, 8),
            ("no rows", 2, 3, 0, 0, 1),
            ("no room at all", 2, 3, 0, 0, 5),
            ("no experts", 2, 0, 4, 0, 1),
            ("many ranks and experts", 16, 33, 2000, 125, 8),
        ];
        let mut all = Vec::new();
        for (label, ranks, experts, rows, pitch, most) in shapes {
            let dims = MergeDims { ranks, experts, pitch, rows };
            // Every fourth count is 0.
            let count = |_| random.below(most) as u32 * u32::from(random.below(4) > 0);
            let counts: Vec<u32> = (0..ranks * experts).map(count).collect();
            let sample = Sample::new(label, dims)
                .input("counts", counts)
                .output::<u32>("offsets", experts + 1, Tolerance::EXACT)
                .output::<u32>("index", rows, Tolerance::EXACT)
                .output::<u32>("overflow", 1, Tolerance::EXACT);
            all.push(sample);
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> MergeArgs<'a, D> {
        MergeArgs {
            counts: views.read("counts"),
            offsets: views.write("offsets"),
            index: views.write("index"),
            overflow: views.write("overflow"),
        }
    }
}
