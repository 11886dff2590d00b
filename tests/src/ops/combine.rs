//! Samples of Combine.

use super::rows::{Rows, Spread};
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{Base, Combine, CombineArgs, CombineDims};
use moe_core::{Device, Scalar};

pub(super) const BASES: [(&str, &str); 3] =
    [("base[0]", "base[0] scale"), ("base[1]", "base[1] scale"), ("base[2]", "base[2] scale")];

impl<T: Scalar> Case for Combine<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let shapes = [
            ("odd sizes", (13, 2, 5), 17, Spread::Random),
            ("some slots dropped", (15, 3, 4), 40, Spread::Dropping),
            ("every slot dropped", (4, 2, 3), 9, Spread::Nowhere),
            ("no tokens", (0, 2, 3), 8, Spread::Random),
            ("one token", (1, 1, 1), 1, Spread::Random),
            ("every expert for every token", (6, 8, 8), 16, Spread::Random),
            ("wide rows", (5, 2, 2), 1000, Spread::Random),
        ];
        let mut all = Vec::new();
        for (label, (tokens, top_k, experts), width, spread) in shapes {
            for bases in 0..=3 {
                let rows = Rows::new(random, tokens, top_k, experts, spread);
                let dims = CombineDims { tokens, top_k, width, rows: rows.bound };
                let weighted = bases % 2 == 0;
                let mut sample = Sample::new(format!("{label}, {bases} base terms"), dims)
                    .input("y", rows.values::<T>(random, width))
                    .input("row_of_slot", rows.row_of_slot.clone())
                    .maybe("weights", weighted.then(|| random.scores::<T::Acc>(tokens * top_k)))
                    .output::<T>("out", tokens * width, Tolerance::stored::<T>());
                for (nth, (base, scale)) in BASES.into_iter().enumerate().skip(3 - bases) {
                    sample = sample
                        .input(base, random.values::<T>(tokens * width))
                        .maybe(scale, (nth != 1).then(|| random.scores::<T::Acc>(tokens)));
                }
                all.push(sample);
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> CombineArgs<'a, D, T> {
        CombineArgs {
            y: views.read("y"),
            row_of_slot: views.read("row_of_slot"),
            weights: views.read_if("weights"),
            base: BASES.map(|(base, scale)| {
                views.read_if(base).map(|rows| Base { rows, scale: views.read_if(scale) })
            }),
            out: views.write("out"),
        }
    }
}
