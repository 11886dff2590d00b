//! SumSquares and BiasUpdate have the bits of the reference.

use super::{below, cpus, launch, values};
use moe_core::ops::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims, SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{Host, View, ViewMut};

#[test]
fn sum_squares() {
    for len in [0, 1, 1023, 1024, 1025, 9000, 50_000] {
        let values = values::<f32>(len, 1);
        for accumulate in [false, true] {
            macro_rules! sum {
                ($device:expr) => {{
                    let mut sum = [0.25];
                    let args = SumSquaresArgs { values: View::of(&values), sum: ViewMut::of(&mut sum) };
                    launch!($device, SumSquares<f32>, SumSquaresDims { len, accumulate }, args).unwrap();
                    sum[0]
                }};
            }
            let want: f32 = sum!(&Host);
            for cpu in cpus() {
                assert_eq!(sum!(&cpu).to_bits(), want.to_bits(), "{cpu:?} {len}");
            }
        }
    }
}

#[test]
fn bias_update() {
    let (counts, rate) = (below(50, 40, 1), [1e-3]);
    macro_rules! update {
        ($device:expr) => {{
            let mut bias = values::<f32>(40, 2);
            let args = BiasUpdateArgs {
                counts: View::of(&counts),
                rate: View::of(&rate),
                bias: ViewMut::of(&mut bias),
            };
            launch!($device, BiasUpdate<f32>, BiasUpdateDims { experts: 40 }, args).unwrap();
            bias
        }};
    }
    let want = update!(&Host);
    for cpu in cpus() {
        assert_eq!(update!(&cpu), want, "{cpu:?}");
    }
}
