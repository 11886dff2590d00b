//! AdamW has the bits of the reference, since nothing in it is fused.

use super::{bits, cpus, launch, values};
use half::{bf16, f16};
use moe_core::ops::{AdamW, AdamWArgs, AdamWDims, AdamWSettings};
use moe_core::{Host, View, ViewMut};
use moe_cpu::Float;

fn agree<T: Float>(len: usize, with_master: bool) {
    let settings = AdamWSettings {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 3,
        scale: 0.5,
    };
    let (settings, dims) = (settings.words::<f32>(), AdamWDims { len });
    let grad = values::<f32>(len, 1);
    macro_rules! step {
        ($device:expr) => {{
            let (mut w, mut master) = (values::<T>(len, 2), values::<f32>(len, 2));
            let (mut m, mut v) = (values::<f32>(len, 3), values::<f32>(len, 4));
            v.iter_mut().for_each(|v| *v = v.abs());
            let args = AdamWArgs {
                settings: View::of(&settings),
                grad: View::of(&grad),
                w: ViewMut::of(&mut w),
                master: with_master.then(|| ViewMut::of(&mut master[..])),
                m: ViewMut::of(&mut m),
                v: ViewMut::of(&mut v),
            };
            launch!($device, AdamW<T>, dims, args).unwrap();
            (bits(&w), bits(&master), bits(&m), bits(&v))
        }};
    }
    let want = step!(&Host);
    for cpu in cpus() {
        assert!(step!(&cpu) == want, "{cpu:?} {len}");
    }
}

#[test]
fn with_and_without_a_master_copy() {
    for len in [0, 1, 15, 513, 20_001] {
        agree::<f32>(len, false);
        agree::<bf16>(len, true);
        agree::<f16>(len, false);
    }
}
