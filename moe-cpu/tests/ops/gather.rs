//! Gather copies the reference's rows, and writes no other.

use super::{below, bits, cpus, launch, values};
use half::bf16;
use moe_core::ops::{Gather, GatherArgs, GatherDims};
use moe_core::{Device, Host, View, ViewMut};
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

/// Asserts that rows are copied from and to memory that begins so many elements behind the start of a buffer.
fn agree_behind<T: Float>(dims: GatherDims, [before_source, before_out]: [usize; 2]) {
    let (rows, len) = (dims.rows as u32, dims.out_rows() * dims.width);
    let (index, offsets) = (below(dims.sources * dims.fan, dims.rows, 2), [0, rows / 2, rows]);
    macro_rules! gather {
        ($device:expr) => {{
            let mut source = $device.alloc::<T>(&(), before_source + dims.sources * dims.width).unwrap();
            let mut out = $device.alloc::<T>(&(), before_out + len).unwrap();
            source[before_source..].copy_from_slice(&values(dims.sources * dims.width, 1));
            out.fill(T::narrow(9.0));
            let args = GatherArgs {
                source: View::of(&source[before_source..]),
                index: View::of(&index),
                offsets: View::of(&offsets),
                out: ViewMut::of(&mut out[before_out..]),
            };
            launch!($device, Gather<T>, dims, args).unwrap();
            bits(&out)
        }};
    }
    let want = gather!(&Host);
    for cpu in cpus() {
        assert!(gather!(&cpu) == want, "{cpu:?} {dims:?}, {before_source} and {before_out} behind");
    }
}

#[test]
fn an_output_that_goes_past_the_caches() {
    // An output of this many bytes does.
    const LARGE: usize = 32 << 20;
    let dims = |rows, width| GatherDims { sources: 100, fan: 3, rows, width, groups: 2, pitch: rows / 2 + 1 };
    let rows = LARGE / 256;
    for (rows, behind) in [(rows - 2, [0, 0]), (rows, [0, 0]), (rows, [1, 0]), (rows, [0, 1])] {
        agree_behind::<f32>(dims(rows, 64), behind);
        agree_behind::<bf16>(dims(rows, 128), behind);
    }
    // Rows that are no whole lines.
    agree_behind::<f32>(dims(rows, 65), [0, 0]);
    agree_behind::<bf16>(dims(rows, 136), [0, 0]);
}
