//! Values to measure with: random enough for the hardware, and made quickly, since a layer may have billions of them.

use anyhow::Result;
use moe_core::ndarray::Array2;
use moe_core::{Accum, MoeConfig, MoeDevice, MoeLayer, Scalar, StateTensor};

/// Values that are made; longer arrays repeat them. A prime, so that no two rows of a matrix are equal.
const BLOCK: usize = 1_048_583;

/// Sums of four uniform values, which are normal, near enough, times `scale`.
pub(super) fn values<T: Scalar>(len: usize, scale: f64, seed: u64) -> Vec<T> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1_u64 << 24) as f64 - 0.5
    };
    let mut normal = || uniform() + uniform() + uniform() + uniform();
    let block: Vec<T> =
        (0..len.min(BLOCK)).map(|_| T::narrow(T::Acc::of(scale * 3_f64.sqrt() * normal()))).collect();
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        all.extend_from_slice(&block[..block.len().min(len - all.len())]);
    }
    all
}

/// Tokens of unit variance.
pub(super) fn tokens<T: Scalar>(rows: usize, width: usize, seed: u64) -> Result<Array2<T>> {
    Ok(Array2::from_shape_vec((rows, width), values(rows * width, 1.0, seed))?)
}

/// A layer whose products keep the variance.
pub(super) fn layer<D: MoeDevice<T>, T: Scalar>(
    device: &D,
    config: &MoeConfig,
    seed: u64,
) -> Result<MoeLayer<D, T>> {
    let specs = config.tensors().into_iter().flatten();
    let state = specs.enumerate().map(|(nth, spec)| {
        let fan_in = spec.shape().last().copied().unwrap_or(1) as f64;
        let values = values::<T>(spec.len(), 1.0 / fan_in.sqrt(), seed << 8 | nth as u64);
        StateTensor {
            name: spec.name.to_owned(),
            shape: spec.shape().to_vec(),
            dtype: T::DTYPE,
            bytes: bytemuck::cast_slice(&values).to_vec(),
        }
    });
    Ok(MoeLayer::from_state(device, config, state)?)
}
