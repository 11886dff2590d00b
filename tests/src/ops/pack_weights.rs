//! Samples of PackWeights. The layout is the device's secret, so what it holds is judged by the products that read it.

use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::views::Views;
use moe_core::ops::{PackDims, PackUse, PackWeights, PackWeightsArgs};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for PackWeights<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let uses = [PackUse::Gate, PackUse::Up, PackUse::Down, PackUse::UpBwd, PackUse::DownBwd];
        let mut all = Vec::new();
        for use_ in uses {
            for (groups, rows, cols) in [(1, 1, 1), (3, 7, 5), (2, 64, 32), (1, 33, 130), (0, 4, 4)] {
                if use_ == PackUse::Gate && groups != 1 {
                    continue;
                }
                let dims = PackDims { groups, rows, cols, use_ };
                let sample = Sample::new(format!("for {use_:?}"), dims)
                    .input("plain", random.values::<T>(groups * rows * cols))
                    .layout::<T>("packed", dims);
                all.push(sample);
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> PackWeightsArgs<'a, D, T> {
        PackWeightsArgs { plain: views.read("plain"), packed: views.write("packed") }
    }
}
