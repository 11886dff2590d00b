//! Samples of ExpertUpBwd.

use super::experts::{Scores, patterns};
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{ExpertUpBwd, ExpertUpBwdArgs, PackUse};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for ExpertUpBwd<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut all = Vec::new();
        for pattern in patterns(random) {
            let (dims, before) = (pattern.dims, pattern.scores == Scores::Before);
            let sample = Sample::new(pattern.label(), dims)
                .input("dz", pattern.rows.values::<T>(random, dims.up_width()))
                .input("offsets", pattern.rows.offsets.clone())
                .weight("w13", random.values::<T>(pattern.weights().0), dims.pack(PackUse::UpBwd))
                .maybe("weights", before.then(|| random.scores::<T::Acc>(dims.slots())))
                .maybe("index", pattern.index())
                .maybe("out_index", pattern.out_index(random))
                .output::<T>("dx", dims.rows * dims.width, Tolerance::gradient::<T>());
            all.push(sample);
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> ExpertUpBwdArgs<'a, D, T> {
        ExpertUpBwdArgs {
            dz: views.read("dz"),
            offsets: views.read("offsets"),
            w13: views.weight("w13"),
            weights: views.read_if("weights"),
            index: views.read_if("index"),
            out_index: views.read_if("out_index"),
            dx: views.write("dx"),
        }
    }
}
