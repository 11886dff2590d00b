//! The device's own dense product: the down-projection of a single expert, which is `a * w^T` and nothing else.

use super::{fill, median, repeat};
use anyhow::Result;
use moe_core::ops::{
    Activation, ExpertDims, ExpertDown, ExpertDownArgs, PackUse, PackWeights, PackWeightsArgs, Weight,
};
use moe_core::{MoeDevice, Scalar, Session, whole, whole_mut};
use std::time::Duration;

/// Sides of the square products that are tried, until one takes long enough to be timed well.
const SIDES: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];
const LONG: f64 = 0.05;

/// Floating-point operations per second of a square product of random values, weights packed before.
pub(super) fn rate<D: MoeDevice<T>, T: Scalar>(device: &D) -> Result<f64> {
    let mut best = 0.0_f64;
    for side in SIDES {
        let seconds = device.enter(|| seconds::<D, T>(device, side))?;
        best = best.max(2.0 * (side as f64).powi(3) / seconds);
        if seconds > LONG {
            break;
        }
    }
    Ok(best)
}

fn seconds<D: MoeDevice<T>, T: Scalar>(device: &D, side: usize) -> Result<f64> {
    let dims = ExpertDims {
        tokens: side,
        fan: 1,
        rows: side,
        experts: 1,
        width: side,
        hidden: side,
        activation: Activation::Linear,
        bias_shares: 1,
    };
    let pack = dims.pack(PackUse::Down);
    let scratch = moe_core::Kernel::<ExpertDown<T>>::scratch(device, &dims)
        .max(moe_core::Kernel::<PackWeights<T>>::scratch(device, &pack));
    let mut session = Session::new(device, scratch)?;
    let (mut a, mut w, mut y) = (
        session.alloc::<T>(side * side)?,
        session.alloc::<T>(side * side)?,
        session.alloc::<T>(side * side)?,
    );
    let mut offsets = session.alloc::<u32>(2)?;
    let mut packed = session.alloc::<u8>(device.packed_len::<T>(&pack))?;
    for (buffer, seed) in [(&mut a, 1), (&mut w, 2)] {
        session.upload(&fill::values::<T>(side * side, 0.5, seed), whole_mut::<D, T>(buffer))?;
    }
    session.upload(&[0, side as u32], whole_mut::<D, u32>(&mut offsets))?;
    let is_packed = device.packed_len::<T>(&pack) > 0;
    if is_packed {
        let args = PackWeightsArgs { plain: whole::<D, T>(&w), packed: whole_mut::<D, u8>(&mut packed) };
        session.run::<PackWeights<T>>(&pack, args)?;
    }
    let mut product = || {
        let args = ExpertDownArgs {
            a: whole::<D, T>(&a),
            offsets: whole::<D, u32>(&offsets),
            w2: if is_packed {
                Weight::Packed(whole::<D, u8>(&packed))
            } else {
                Weight::Plain(whole::<D, T>(&w))
            },
            b2: None,
            out_index: None,
            y: whole_mut::<D, T>(&mut y),
        };
        session.run::<ExpertDown<T>>(&dims, args)?;
        session.sync()?;
        Ok(())
    };
    product()?;
    Ok(median(&mut repeat(Duration::from_millis(300), product)?))
}
