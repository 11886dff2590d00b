//! Samples of Gather.

use super::rows::{Rows, Spread};
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{Gather, GatherArgs, GatherDims};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for Gather<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let shapes = [
            ("odd sizes", (13, 2, 5), 17, Spread::Random),
            ("one slot per source", (30, 1, 4), 8, Spread::Random),
            ("some slots dropped", (15, 3, 4), 40, Spread::Dropping),
            ("every slot dropped", (4, 2, 3), 9, Spread::Nowhere),
            ("empty destinations", (9, 1, 6), 3, Spread::Only(&[4, 1])),
            ("no tokens", (0, 2, 3), 8, Spread::Random),
            ("one destination", (1, 1, 1), 1, Spread::Random),
            ("no destinations", (2, 1, 0), 4, Spread::Nowhere),
            ("wide rows", (6, 2, 2), 700, Spread::Random),
        ];
        let mut all = Vec::new();
        for (label, (sources, fan, groups), width, spread) in shapes {
            for pitched in [false, true] {
                let rows = Rows::new(random, sources, fan, groups, spread);
                let longest = rows.offsets.windows(2).map(|pair| pair[1] - pair[0]).max();
                let dims = GatherDims {
                    sources,
                    fan,
                    rows: rows.bound,
                    width,
                    groups,
                    pitch: if pitched { longest.unwrap_or(0) as usize + 1 } else { 0 },
                };
                let form = if pitched { "equal splits" } else { "end to end" };
                let sample = Sample::new(format!("{label}, {form}"), dims)
                    .input("source", random.values::<T>(sources * width))
                    .input("index", rows.index.clone())
                    .input("offsets", rows.offsets.clone())
                    .output::<T>("out", dims.out_rows() * width, Tolerance::EXACT);
                all.push(sample);
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> GatherArgs<'a, D, T> {
        GatherArgs {
            source: views.read("source"),
            index: views.read("index"),
            offsets: views.read("offsets"),
            out: views.write("out"),
        }
    }
}
