//! Samples of GateBwd.

use super::route::stamp;
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{GateBwd, GateBwdArgs, GateBwdDims, Jitter, PackDims, PackUse};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for GateBwd<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut all = Vec::new();
        for (label, tokens, width, experts) in [
            ("odd sizes", 13, 17, 5),
            ("no tokens", 0, 8, 4),
            ("one token", 1, 5, 3),
            ("one expert", 9, 6, 1),
            ("more than a chunk", 2300, 3, 2),
            ("across tiles", 70, 130, 40),
            ("multiples of eight, more than a chunk", 1100, 72, 40),
            ("multiples of eight, across wide tiles", 270, 264, 136),
        ] {
            for bits in 0..8 {
                let on = |bit: usize| bits >> bit & 1 == 1;
                // Noise is slow to draw for so many, and nothing new.
                if on(0) && tokens * width * experts > 1 << 20 {
                    continue;
                }
                let dims = GateBwdDims {
                    tokens,
                    width,
                    experts,
                    jitter: on(0).then_some(Jitter { amplitude: 0.3 }),
                    accumulate: on(1),
                };
                all.push(sample(random, label, dims, on(2)));
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> GateBwdArgs<'a, D, T> {
        GateBwdArgs {
            dlogits: views.read("dlogits"),
            x: views.read("x"),
            gate: views.weight("gate"),
            stamp: views.read_if("stamp"),
            dx: views.write("dx"),
            dgate: views.write("dgate"),
            dbias: views.write_if("dbias"),
        }
    }
}

fn sample<T: Scalar>(
    random: &mut Random,
    label: &str,
    dims: GateBwdDims,
    biased: bool,
) -> Sample<GateBwd<T>> {
    let GateBwdDims { tokens, width, experts, .. } = dims;
    let close = Tolerance::gradient::<T>();
    let pack = PackDims { groups: 1, rows: experts, cols: width, use_: PackUse::Gate };
    let sample = Sample::new(label, dims)
        .input("dlogits", random.values::<T::Acc>(tokens * experts))
        .input("x", random.values::<T>(tokens * width))
        .weight("gate", random.values::<T>(experts * width), pack)
        .maybe("stamp", dims.jitter.map(|_| stamp().to_vec()))
        .output::<T>("dx", tokens * width, close);
    if dims.accumulate {
        let sample = sample.update("dgate", random.values::<T::Acc>(experts * width), close);
        match biased {
            true => sample.update("dbias", random.values::<T::Acc>(experts), close),
            false => sample,
        }
    } else {
        let sample = sample.output::<T::Acc>("dgate", experts * width, close);
        sample.output_if::<T::Acc>(biased, "dbias", experts, close)
    }
}
