//! BiasUpdate: loss-free balancing (Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy", 2024; DeepSeek-V3, 2.1.2).
//!
//! `bias[e] += rate * (sign - mean of signs)` with `sign = sign(sum(counts) - E * counts[e])` in integers, so that every rank
//! and backend takes the same step: with `n = E * sign - sum of signs`, an integer, `bias[e] = fma(rate, n / E, bias[e])`.

use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out};
use core::cmp::Ordering;
use core::marker::PhantomData;

/// Step of the selection bias, for layers of storage type `T`.
pub struct BiasUpdate<T>(PhantomData<T>);

/// Sizes of [`BiasUpdate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BiasUpdateDims {
    /// E
    pub experts: usize,
}

/// Views of [`BiasUpdate`].
pub struct BiasUpdateArgs<'a, D: Device, T: Scalar> {
    /// (experts): slots per expert in the whole step, over all micro-batches and ranks
    pub counts: In<'a, D, u32>,
    /// (1)
    pub rate: In<'a, D, T::Acc>,
    /// (experts), updated
    pub bias: Out<'a, D, T::Acc>,
}

impl<T: Scalar> Op for BiasUpdate<T> {
    const ID: OpId = OpId("bias_update");
    type Dims = BiasUpdateDims;
    type Args<'a, D: Device> = BiasUpdateArgs<'a, D, T>;

    fn check<D: Device>(dims: &BiasUpdateDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        expect(Self::ID, "counts", &[dims.experts], args.counts.len())?;
        expect(Self::ID, "rate", &[1], args.rate.len())?;
        expect(Self::ID, "bias", &[dims.experts], args.bias.len())
    }

    fn reference(dims: &BiasUpdateDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (counts, rate, bias) = (args.counts.host(), args.rate.host()[0], args.bias.host());
        let experts = dims.experts as i64;
        let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let sign = |count: u32| match total.cmp(&(u64::from(count) * experts as u64)) {
            Ordering::Greater => 1,
            Ordering::Equal => 0,
            Ordering::Less => -1_i64,
        };
        let signs: i64 = counts.iter().map(|count| sign(*count)).sum();
        for (bias, count) in bias.iter_mut().zip(counts) {
            let centred = experts * sign(*count) - signs;
            *bias = rate.fused(T::Acc::of(centred as f64) / T::Acc::count(dims.experts), *bias);
        }
        Ok(())
    }
}
