//! Samples of BiasUpdate.

use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims};
use moe_core::{Accum, Device, Scalar};

impl<T: Scalar> Case for BiasUpdate<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut counts = |experts: usize, below: usize| -> Vec<u32> {
            (0..experts).map(|_| random.below(below) as u32).collect()
        };
        let all = [
            ("small counts", counts(7, 5)),
            ("many experts", counts(256, 1000)),
            ("more experts than lanes", counts(37, 100)),
            ("equal counts", vec![12; 9]),
            ("no slots", vec![0; 6]),
            ("one expert", vec![3]),
            ("sums beyond 32 bits", counts(33, u32::MAX as usize)),
            ("one expert has all slots", [vec![0; 10], vec![u32::MAX]].concat()),
        ];
        all.into_iter()
            .map(|(label, counts)| {
                let experts = counts.len();
                Sample::new(label, BiasUpdateDims { experts })
                    .input("counts", counts)
                    .input("rate", vec![T::Acc::of(1e-3)])
                    .update("bias", random.values::<T::Acc>(experts), Tolerance::EXACT)
            })
            .collect()
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> BiasUpdateArgs<'a, D, T> {
        BiasUpdateArgs { counts: views.read("counts"), rate: views.read("rate"), bias: views.write("bias") }
    }
}
