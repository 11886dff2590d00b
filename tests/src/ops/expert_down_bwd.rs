//! Samples of ExpertDownBwd.

use super::experts::{Scores, patterns};
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{ExpertDownBwd, ExpertDownBwdArgs, PackUse};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for ExpertDownBwd<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let close = Tolerance::gradient::<T>();
        let mut all = Vec::new();
        for (nth, pattern) in patterns(random).into_iter().enumerate() {
            let (dims, scored) = (pattern.dims, pattern.scores != Scores::Absent);
            let (up, biased) = (dims.up_width(), pattern.biased);
            let sample = Sample::new(pattern.label(), dims)
                .input("dout", random.values::<T>(dims.tokens * dims.width))
                .maybe("index", pattern.index())
                .input("offsets", pattern.rows.offsets.clone())
                .weight("w2", random.values::<T>(pattern.weights().1), dims.pack(PackUse::DownBwd))
                .maybe("b2", biased.then(|| random.values::<T>(dims.experts * dims.width)))
                .maybe("b13", biased.then(|| random.values::<T>(dims.experts * up)))
                .maybe("weights", scored.then(|| random.scores::<T::Acc>(dims.slots())))
                .flag("scores_first", pattern.scores == Scores::Before)
                .update("h", pattern.rows.values::<T>(random, up), close)
                .output::<T>("a", dims.rows * dims.hidden, close)
                .output_if::<T::Acc>(scored && nth % 5 != 4, "ds", dims.slots(), close);
            all.push(sample);
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> ExpertDownBwdArgs<'a, D, T> {
        ExpertDownBwdArgs {
            dout: views.read("dout"),
            index: views.read_if("index"),
            offsets: views.read("offsets"),
            w2: views.weight("w2"),
            b2: views.read_if("b2"),
            b13: views.read_if("b13"),
            weights: views.read_if("weights"),
            scores_first: views.flag("scores_first"),
            h: views.write("h"),
            a: views.write("a"),
            ds: views.write_if("ds"),
        }
    }
}
