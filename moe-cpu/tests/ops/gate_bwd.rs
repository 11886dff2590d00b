//! GateBwd has the values of the reference.

use super::{assert_close, cpus, launch, route::pack, values};
use half::{bf16, f16};
use moe_core::ops::{GateBwd, GateBwdArgs, GateBwdDims, Jitter, RouteDims, RouteRule, Stamp, Weight};
use moe_core::{Host, View, ViewMut};
use moe_cpu::Float;

fn agree<T: Float>([tokens, width, experts]: [usize; 3], jitter: Option<Jitter>, accumulate: bool) {
    let dims = GateBwdDims { tokens, width, experts, jitter, accumulate };
    let forward = RouteDims { tokens, width, experts, top_k: 1, rule: RouteRule::default() };
    let (dlogits, x) = (values::<f32>(tokens * experts, 1), values::<T>(tokens * width, 2));
    let (gate, stamp) = (values::<T>(experts * width, 3), Stamp { seed: 5, ..Stamp::default() }.words());
    macro_rules! backward {
        ($device:expr, $gate:expr) => {{
            let mut dx = vec![T::narrow(9.0); tokens * width];
            let (mut dgate, mut dbias) = (vec![0.5; experts * width], vec![0.25; experts]);
            let args = GateBwdArgs {
                dlogits: View::of(&dlogits),
                x: View::of(&x),
                gate: $gate,
                stamp: Some(View::of(&stamp)),
                dx: ViewMut::of(&mut dx),
                dgate: ViewMut::of(&mut dgate),
                dbias: Some(ViewMut::of(&mut dbias)),
            };
            launch!($device, GateBwd<T>, dims, args).unwrap();
            (dx, dgate, dbias)
        }};
    }
    // A sum that differs in its last bit may be rounded to the next value of a narrow type.
    let rounding = if size_of::<T>() == 4 { 1e-6 } else { 0.01 };
    let want = backward!(&Host, Weight::Plain(View::of(&gate)));
    for cpu in cpus() {
        let packed = pack(&cpu, &forward, &gate);
        for gate in [Weight::Plain(View::of(&gate)), Weight::Packed(View::of(&packed))] {
            let got = backward!(&cpu, gate);
            assert_close(&got.0, &want.0, rounding, "dx");
            assert_close(&got.1, &want.1, 1e-6, "dgate");
            assert_close(&got.2, &want.2, 1e-6, "dbias");
        }
    }
}

#[test]
fn odd_sizes() {
    for sizes in [[0, 5, 3], [1, 1, 1], [9, 0, 2], [5, 20, 0], [130, 70, 5], [1100, 33, 70], [300, 9, 300]] {
        agree::<f32>(sizes, None, false);
        agree::<bf16>(sizes, Some(Jitter { amplitude: 0.2 }), true);
        agree::<f16>(sizes, None, true);
    }
}
