//! Samples of SumSquares.

use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{Accum, Device, Scalar};

impl<T: Scalar> Case for SumSquares<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let close = Tolerance::sum::<T>();
        let mut all = Vec::new();
        for len in [0, 1, 31, 1024, 1025, 10_000] {
            for accumulate in [false, true] {
                let dims = SumSquaresDims { len, accumulate };
                let sample =
                    Sample::new(format!("{len} values"), dims).input("values", random.values::<T::Acc>(len));
                all.push(if accumulate {
                    sample.update("sum", vec![T::Acc::of(2.5)], close)
                } else {
                    sample.output::<T::Acc>("sum", 1, close)
                });
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> SumSquaresArgs<'a, D, T> {
        SumSquaresArgs { values: views.read("values"), sum: views.write("sum") }
    }
}
