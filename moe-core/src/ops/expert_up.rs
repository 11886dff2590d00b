//! ExpertUp: gather, up-projection, bias and activation.
//!
//! For row r of expert e, with slot = index[r] and token = slot / fan: `h = x[token] * w13[e]^T`, then
//! `a = activation(z)` with `z = h + b13[e]`, read after h was rounded to the storage type. Scores after the experts: the kept
//! h includes the bias. Scores first (`weights` given): h is kept unscaled and without bias, and `z = weights[slot] * h + b13[e]`.

use super::experts::slot_of;
use super::{ExpertDims, Weight, product_row};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View, ViewMut};
use alloc::vec;
use core::marker::PhantomData;

/// The experts' first product with its activation, for storage type `T`.
pub struct ExpertUp<T>(PhantomData<T>);

/// Views of [`ExpertUp`]. Rows at and beyond the last offset are neither read nor written.
pub struct ExpertUpArgs<'a, D: Device, T: Scalar> {
    /// (tokens, width)
    pub x: In<'a, D, T>,
    /// (rows): the row's slot; `None`: row r is token r
    pub index: Option<In<'a, D, u32>>,
    /// (experts + 1)
    pub offsets: In<'a, D, u32>,
    /// (experts, up_width, width): gate half, then up half
    pub w13: Weight<'a, D, T>,
    /// (experts, up_width)
    pub b13: Option<In<'a, D, T>>,
    /// (tokens * fan): scores applied before the experts
    pub weights: Option<In<'a, D, T::Acc>>,
    /// (rows, up_width), overwritten: kept for backward
    pub h: Option<Out<'a, D, T>>,
    /// (rows, hidden), overwritten
    pub a: Out<'a, D, T>,
}

impl<T: Scalar> Op for ExpertUp<T> {
    const ID: OpId = OpId("expert_up");
    type Dims = ExpertDims;
    type Args<'a, D: Device> = ExpertUpArgs<'a, D, T>;

    fn check<D: Device>(dims: &ExpertDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        dims.check(Self::ID, args.index.map(|i| i.len()), args.offsets.len())?;
        expect(Self::ID, "x", &[dims.tokens, dims.width], args.x.len())?;
        args.w13.check(Self::ID, "w13", &[dims.experts, dims.up_width(), dims.width])?;
        if let Some(b13) = &args.b13 {
            expect(Self::ID, "b13", &[dims.experts, dims.up_width()], b13.len())?;
        }
        if let Some(weights) = &args.weights {
            expect(Self::ID, "weights", &[dims.tokens, dims.fan], weights.len())?;
        }
        if let Some(h) = &args.h {
            expect(Self::ID, "h", &[dims.rows, dims.up_width()], h.len())?;
        }
        expect(Self::ID, "a", &[dims.rows, dims.hidden], args.a.len())
    }

    fn reference(dims: &ExpertDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (width, hidden, up) = (dims.width, dims.hidden, dims.up_width());
        let (x, offsets, w13) = (args.x.host(), args.offsets.host(), args.w13.host());
        let (index, b13) = (args.index.map(View::host), args.b13.map(View::host));
        let weights = args.weights.map(View::host);
        let (mut h, a) = (args.h.map(ViewMut::host), args.a.host());
        dims.check_values(Self::ID, offsets, index)?;
        let mut row_h = vec![T::default(); up];
        for (expert, bounds) in offsets.windows(2).enumerate() {
            for row in bounds[0] as usize..bounds[1] as usize {
                let slot = slot_of(index, row);
                let x = &x[slot / dims.fan * width..][..width];
                for (n, h) in row_h.iter_mut().enumerate() {
                    let w = &w13[(expert * up + n) * width..][..width];
                    let mut sum = product_row(x, |k| w[k]);
                    if let (Some(b13), None) = (b13, weights) {
                        sum += b13[expert * up + n].widen();
                    }
                    *h = T::narrow(sum);
                }
                if let Some(h) = &mut h {
                    h[row * up..][..up].copy_from_slice(&row_h);
                }
                let z = |n: usize| {
                    let b13 = b13.map_or(T::Acc::ZERO, |b13| b13[expert * up + n].widen());
                    weights.map_or(row_h[n].widen(), |weights| weights[slot].fused(row_h[n].widen(), b13))
                };
                for f in 0..hidden {
                    let u = if up > hidden { z(hidden + f) } else { T::Acc::ZERO };
                    a[row * hidden + f] = T::narrow(dims.activation.apply(z(f), u));
                }
            }
        }
        Ok(())
    }
}
