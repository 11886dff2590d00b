//! Samples of ExpertUp.

use super::experts::{Scores, patterns};
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{ExpertUp, ExpertUpArgs, PackUse};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for ExpertUp<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let close = Tolerance::stored::<T>();
        let mut all = Vec::new();
        for (nth, pattern) in patterns(random).into_iter().enumerate() {
            let (dims, before) = (pattern.dims, pattern.scores == Scores::Before);
            let up = dims.up_width();
            let sample = Sample::new(pattern.label(), dims)
                .input("x", random.values::<T>(dims.tokens * dims.width))
                .maybe("index", pattern.index())
                .input("offsets", pattern.rows.offsets.clone())
                .weight("w13", random.values::<T>(pattern.weights().0), dims.pack(PackUse::Up))
                .maybe("b13", pattern.biased.then(|| random.values::<T>(dims.experts * up)))
                .maybe("weights", before.then(|| random.scores::<T::Acc>(dims.slots())))
                .output_if::<T>(nth % 3 != 2, "h", dims.rows * up, close)
                .output::<T>("a", dims.rows * dims.hidden, close);
            all.push(sample);
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> ExpertUpArgs<'a, D, T> {
        ExpertUpArgs {
            x: views.read("x"),
            index: views.read_if("index"),
            offsets: views.read("offsets"),
            w13: views.weight("w13"),
            b13: views.read_if("b13"),
            weights: views.read_if("weights"),
            h: views.write_if("h"),
            a: views.write("a"),
        }
    }
}
