//! Samples of ExpertDown.

use super::experts::patterns;
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{ExpertDown, ExpertDownArgs, PackUse};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for ExpertDown<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut all = Vec::new();
        for pattern in patterns(random) {
            let dims = pattern.dims;
            let biases = dims.experts * dims.width;
            let sample = Sample::new(pattern.label(), dims)
                .input("a", pattern.rows.values::<T>(random, dims.hidden))
                .input("offsets", pattern.rows.offsets.clone())
                .weight("w2", random.values::<T>(pattern.weights().1), dims.pack(PackUse::Down))
                .maybe("b2", pattern.biased.then(|| random.values::<T>(biases)))
                .maybe("out_index", pattern.out_index(random))
                .output::<T>("y", dims.rows * dims.width, Tolerance::stored::<T>());
            all.push(sample);
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> ExpertDownArgs<'a, D, T> {
        ExpertDownArgs {
            a: views.read("a"),
            offsets: views.read("offsets"),
            w2: views.weight("w2"),
            b2: views.read_if("b2"),
            out_index: views.read_if("out_index"),
            y: views.write("y"),
        }
    }
}
