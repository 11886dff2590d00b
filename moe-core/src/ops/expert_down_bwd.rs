//! ExpertDownBwd: backward through the down-projection and the activation, and the gradient of the scores.
//!
//! For row r of expert e with slot = index[r], s = weights[slot] and `da = dout[slot / fan] * w2[e]`:
//! * scores after the experts: `ds = <da, a> + <dout, b2[e]> / bias_shares`, `dz = s * da * activation'(h)`, `a' = s * a`;
//! * scores first: `dz = da * activation'(z)` with `z = s * h + b13[e]`, `ds = <dz, h>`, `a' = a`;
//! * no weights: s = 1, and no ds.
//!
//! dz, the gradient at the activation's input, is written over h. a' is what the gradient of w2 is made of.

use super::experts::slot_of;
use super::{ExpertDims, Weight};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View, ViewMut};
use alloc::vec;
use core::marker::PhantomData;

/// Backward of the second product and the activation, for storage type `T`.
pub struct ExpertDownBwd<T>(PhantomData<T>);

/// Views of [`ExpertDownBwd`]. Rows at and beyond the last offset are neither read nor written.
pub struct ExpertDownBwdArgs<'a, D: Device, T: Scalar> {
    /// (tokens, width)
    pub dout: In<'a, D, T>,
    /// (rows): the row's slot; `None`: row r is token r
    pub index: Option<In<'a, D, u32>>,
    /// (experts + 1)
    pub offsets: In<'a, D, u32>,
    /// (experts, width, hidden)
    pub w2: Weight<'a, D, T>,
    /// (experts, width), read for ds when scores come after
    pub b2: Option<In<'a, D, T>>,
    /// (experts, up_width), read when scores come first (else h includes it)
    pub b13: Option<In<'a, D, T>>,
    /// (tokens * fan)
    pub weights: Option<In<'a, D, T::Acc>>,
    /// whether the forward pass applied `weights` before the experts
    pub scores_first: bool,
    /// (rows, up_width): h on entry, dz on return
    pub h: Out<'a, D, T>,
    /// (rows, hidden), overwritten: a'
    pub a: Out<'a, D, T>,
    /// (tokens * fan), overwritten at the slots that have rows
    pub ds: Option<Out<'a, D, T::Acc>>,
}

impl<T: Scalar> Op for ExpertDownBwd<T> {
    const ID: OpId = OpId("expert_down_bwd");
    type Dims = ExpertDims;
    type Args<'a, D: Device> = ExpertDownBwdArgs<'a, D, T>;

    fn check<D: Device>(dims: &ExpertDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        dims.check(Self::ID, args.index.map(|i| i.len()), args.offsets.len())?;
        expect(Self::ID, "dout", &[dims.tokens, dims.width], args.dout.len())?;
        args.w2.check(Self::ID, "w2", &[dims.experts, dims.width, dims.hidden])?;
        if let Some(b2) = &args.b2 {
            expect(Self::ID, "b2", &[dims.experts, dims.width], b2.len())?;
        }
        if let Some(b13) = &args.b13 {
            expect(Self::ID, "b13", &[dims.experts, dims.up_width()], b13.len())?;
        }
        match &args.weights {
            Some(weights) => expect(Self::ID, "weights", &[dims.tokens, dims.fan], weights.len())?,
            None if args.scores_first || args.ds.is_some() => {
                let why = "are missing, but scores come first or ds is wanted";
                return Err(ShapeError::Combination { op: Self::ID, what: "weights", why });
            }
            None => {}
        }
        expect(Self::ID, "h", &[dims.rows, dims.up_width()], args.h.len())?;
        expect(Self::ID, "a", &[dims.rows, dims.hidden], args.a.len())?;
        match &args.ds {
            Some(ds) => expect(Self::ID, "ds", &[dims.tokens, dims.fan], ds.len()),
            None => Ok(()),
        }
    }

    fn reference(dims: &ExpertDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (width, hidden, up) = (dims.width, dims.hidden, dims.up_width());
        let (dout, offsets, w2) = (args.dout.host(), args.offsets.host(), args.w2.host());
        let (index, weights) = (args.index.map(View::host), args.weights.map(View::host));
        let (b2, b13) = (args.b2.map(View::host), args.b13.map(View::host));
        let (h, a, mut ds) = (args.h.host(), args.a.host(), args.ds.map(ViewMut::host));
        dims.check_values(Self::ID, offsets, index)?;
        let mut da = vec![T::Acc::ZERO; hidden];
        for (expert, bounds) in offsets.windows(2).enumerate() {
            for row in bounds[0] as usize..bounds[1] as usize {
                let slot = slot_of(index, row);
                let s = weights.map_or(T::Acc::ONE, |weights| weights[slot]);
                let dout = &dout[slot / dims.fan * width..][..width];
                for (f, da) in da.iter_mut().enumerate() {
                    let column = |d: usize| w2[(expert * width + d) * hidden + f];
                    *da = super::product_row(dout, column);
                }
                let h = &mut h[row * up..][..up];
                let mut score_gradient = T::Acc::ZERO;
                for f in 0..hidden {
                    let z = |n: usize| {
                        let b13 = b13.map_or(T::Acc::ZERO, |b13| b13[expert * up + n].widen());
                        if args.scores_first { s.fused(h[n].widen(), b13) } else { h[n].widen() }
                    };
                    let (g, u) = (z(f), if up > hidden { z(hidden + f) } else { T::Acc::ZERO });
                    let value = dims.activation.apply(g, u);
                    let outer = if args.scores_first { T::Acc::ONE } else { s };
                    let (dg, du) = dims.activation.gradient(g, u, outer * da[f]);
                    if args.scores_first {
                        score_gradient = dg.fused(h[f].widen(), score_gradient);
                    } else {
                        score_gradient = da[f].fused(value, score_gradient);
                    }
                    h[f] = {
                        if up > hidden {
                            if args.scores_first {
                                score_gradient = du.fused(h[hidden + f].widen(), score_gradient);
                            }
                            h[hidden + f] = T::narrow(du);
                        }
                        T::narrow(dg)
                    };
                    a[row * hidden + f] = T::narrow(outer * value);
                }
                if let (Some(b2), false) = (b2, args.scores_first) {
                    let b2 = &b2[expert * width..][..width];
                    score_gradient += super::product_row(dout, |d| b2[d]) / T::Acc::count(dims.bias_shares);
                }
                if let Some(ds) = &mut ds {
                    ds[slot] = score_gradient;
                }
            }
        }
        Ok(())
    }
}
