//! First weights: uniform in ±1/sqrt(fan in), as `torch.nn.Linear`; biases 0.

use super::MoeLayer;
use crate::config::MoeConfig;
use crate::error::Error;
use crate::ops::MoeDevice;
use crate::scalar::{Accum, Scalar};
use crate::view::whole_mut;
use alloc::vec::Vec;

impl<T: Scalar, D: MoeDevice<T>> MoeLayer<D, T> {
    /// A layer with random weights that depend on `seed` and the configuration alone, not on the device. A part of a layer has
    /// the values of the whole there.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is wrong; [`Error::Device`] if memory runs out.
    pub fn init(device: &D, config: &MoeConfig, seed: u64) -> Result<Self, Error<D::Error>> {
        let mut layer = Self::zeroed(device, config)?;
        let specs = config.tensors().into_iter().zip(config.whole().tensors());
        for (at, ((spec, whole), buffer)) in specs.zip(layer.weights.list_mut()).enumerate() {
            let (Some(spec), Some(whole), Some(buffer)) = (spec, whole, buffer) else {
                continue;
            };
            if matches!(spec.name, "gate_bias" | "b13" | "b2") {
                continue;
            }
            let fan_in = whole.shape().last().copied().unwrap_or(1);
            let bound = 1.0 / libm::sqrt(fan_in as f64);
            let random = Random(seed ^ (at as u64) << 56);
            let values: Vec<T> =
                spec.runs().flatten().map(|at| T::narrow(T::Acc::of(bound * random.signed(at)))).collect();
            layer.session.upload(&values, whole_mut::<D, T>(buffer))?;
        }
        layer.pack()
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014), which reaches each number of its sequence at once.
struct Random(u64);

impl Random {
    /// Number `at` of the sequence, uniform in -1 to 1.
    fn signed(&self, at: usize) -> f64 {
        let steps = (at as u64).wrapping_add(1);
        let mut z = self.0.wrapping_add(steps.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}
