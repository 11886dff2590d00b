//! Gather copies the reference's rows, and writes no other.

use super::{below, bits, cpus, launch, values};
use half::bf16;
use moe_core::ops::{Gather, GatherArgs, GatherDims};
use moe_core::{Host, View, ViewMut};
use moe_cpu::Float;

fn agree<T: Float>(dims: GatherDims, offsets: &[u32]) {
    let source = values::<T>(dims.sources * dims.width, 1);
    let index = below(dims.sources * dims.fan, dims.rows, 2);
    macro_rules! gather {
        ($device:expr) => {{
            let mut out = vec![T::narrow(9.0); dims.out_rows() * dims.width];
            let args = GatherArgs {
                source: View::of(&source),
                index: View::of(&index),
                offsets: View::of(offsets),
                out: ViewMut::of(&mut out),
            };
            launch!($device, Gather<T>, dims, args).unwrap();
            bits(&out)
        }};
    }
    let want = gather!(&Host);
    for cpu in cpus() {
        assert_eq!(gather!(&cpu), want, "{cpu:?} {dims:?}");
    }
}

#[test]
fn groups_end_to_end_and_apart() {
    for pitch in [0, 130, 200] {
        let dims = GatherDims { sources: 50, fan: 3, rows: 300, width: 13, groups: 4, pitch };
        agree::<f32>(dims, &[0, 5, 5, 135, 260]);
        agree::<bf16>(dims, &[0, 0, 0, 0, 0]);
    }
    agree::<f32>(GatherDims { sources: 0, fan: 1, rows: 0, width: 4, groups: 0, pitch: 0 }, &[0]);
    agree::<f32>(GatherDims { sources: 4, fan: 1, rows: 9, width: 0, groups: 1, pitch: 0 }, &[0, 9]);
}
