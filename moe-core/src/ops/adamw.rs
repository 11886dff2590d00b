//! AdamW: one optimizer step over one tensor (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).
//!
//! With g' = scale * g: `w -= lr * decay * w`, `m = beta1 * m + (1 - beta1) * g'`, `v = beta2 * v + (1 - beta2) * g'^2`,
//! `w -= (lr / c1) * m / (sqrt(v) / sqrt(c2) + eps)` with `c = 1 - beta^step`. Weights of a narrow storage type are kept in
//! `master` and rounded from there.

use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View, ViewMut};
use core::marker::PhantomData;

/// One step over one tensor of storage type `T`.
pub struct AdamW<T>(PhantomData<T>);

/// Length of the settings' buffer.
pub const ADAMW_SETTINGS: usize = 8;

/// What may change from step to step; on the device as [`words`](AdamWSettings::words).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// learning rate
    pub lr: f64,
    /// decay of the first moment
    pub beta1: f64,
    /// decay of the second moment
    pub beta2: f64,
    /// added to the denominator
    pub eps: f64,
    /// decoupled decay, multiplied with the learning rate
    pub weight_decay: f64,
    /// steps so far, this one included: 1 for the first
    pub step: u64,
    /// factor on the gradient: clipping, loss scale
    pub scale: f64,
}

impl AdamWSettings {
    /// lr * decay, beta1, beta2, eps, lr / c1, sqrt(c2), scale, 0, each rounded to the accumulation type.
    pub fn words<A: Accum>(&self) -> [A; ADAMW_SETTINGS] {
        let power = |beta: f64| libm::pow(beta, self.step as f64);
        let (c1, c2) = (1.0 - power(self.beta1), 1.0 - power(self.beta2));
        let Self { lr, beta1, beta2, eps, weight_decay, scale, .. } = *self;
        [lr * weight_decay, beta1, beta2, eps, lr / c1, libm::sqrt(c2), scale, 0.0].map(A::of)
    }
}

/// Sizes of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdamWDims {
    /// elements
    pub len: usize,
}

/// Views of [`AdamW`].
pub struct AdamWArgs<'a, D: Device, T: Scalar> {
    /// ([`ADAMW_SETTINGS`])
    pub settings: In<'a, D, T::Acc>,
    /// (len)
    pub grad: In<'a, D, T::Acc>,
    /// (len), updated
    pub w: Out<'a, D, T>,
    /// (len), updated: the weights before rounding
    pub master: Option<Out<'a, D, T::Acc>>,
    /// (len), updated: first moment
    pub m: Out<'a, D, T::Acc>,
    /// (len), updated: second moment
    pub v: Out<'a, D, T::Acc>,
}

impl<T: Scalar> Op for AdamW<T> {
    const ID: OpId = OpId("adamw");
    type Dims = AdamWDims;
    type Args<'a, D: Device> = AdamWArgs<'a, D, T>;

    fn check<D: Device>(dims: &AdamWDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        expect(Self::ID, "settings", &[ADAMW_SETTINGS], args.settings.len())?;
        expect(Self::ID, "grad", &[dims.len], args.grad.len())?;
        expect(Self::ID, "w", &[dims.len], args.w.len())?;
        if let Some(master) = &args.master {
            expect(Self::ID, "master", &[dims.len], master.len())?;
        }
        expect(Self::ID, "m", &[dims.len], args.m.len())?;
        expect(Self::ID, "v", &[dims.len], args.v.len())
    }

    fn reference(dims: &AdamWDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let &[decay, beta1, beta2, eps, rate, root, scale, _] = args.settings.host() else {
            return expect(Self::ID, "settings", &[ADAMW_SETTINGS], 0);
        };
        let (w, m, v) = (args.w.host(), args.m.host(), args.v.host());
        let (grad, mut master) = (View::host(args.grad), args.master.map(ViewMut::host));
        for i in 0..dims.len {
            let g = scale * grad[i];
            m[i] = beta1 * m[i] + (T::Acc::ONE - beta1) * g;
            v[i] = beta2 * v[i] + (T::Acc::ONE - beta2) * g * g;
            let old = master.as_ref().map_or(w[i].widen(), |master| master[i]);
            let new = old - decay * old - rate * (m[i] / (v[i].fixed_sqrt() / root + eps));
            if let Some(master) = &mut master {
                master[i] = new;
            }
            w[i] = T::narrow(new);
        }
        Ok(())
    }
}
