//! ExpertDown: down-projection and bias.
//!
//! `y[out_index[r]] = a[r] * w2[e]^T + b2[e] / bias_shares` for row r of expert e; without an out index y[r].

use super::experts::slot_of;
use super::{ExpertDims, Weight, product_row};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, check_index, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View};
use core::marker::PhantomData;

/// The experts' second product, for storage type `T`.
pub struct ExpertDown<T>(PhantomData<T>);

/// Views of [`ExpertDown`]. Rows at and beyond the last offset are neither read nor written. Of
/// [`ExpertDims`], `tokens` and `fan` are not used.
pub struct ExpertDownArgs<'a, D: Device, T: Scalar> {
    /// (rows, hidden)
    pub a: In<'a, D, T>,
    /// (experts + 1)
    pub offsets: In<'a, D, u32>,
    /// (experts, width, hidden)
    pub w2: Weight<'a, D, T>,
    /// (experts, width)
    pub b2: Option<In<'a, D, T>>,
    /// (rows): the row of y; all different
    pub out_index: Option<In<'a, D, u32>>,
    /// (rows, width), the rows named by offsets and index overwritten
    pub y: Out<'a, D, T>,
}

impl<T: Scalar> Op for ExpertDown<T> {
    const ID: OpId = OpId("expert_down");
    type Dims = ExpertDims;
    type Args<'a, D: Device> = ExpertDownArgs<'a, D, T>;

    fn check<D: Device>(dims: &ExpertDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        dims.check(Self::ID, Some(dims.rows), args.offsets.len())?;
        expect(Self::ID, "a", &[dims.rows, dims.hidden], args.a.len())?;
        args.w2.check(Self::ID, "w2", &[dims.experts, dims.width, dims.hidden])?;
        if let Some(b2) = &args.b2 {
            expect(Self::ID, "b2", &[dims.experts, dims.width], b2.len())?;
        }
        if let Some(index) = &args.out_index {
            expect(Self::ID, "out_index", &[dims.rows], index.len())?;
        }
        expect(Self::ID, "y", &[dims.rows, dims.width], args.y.len())
    }

    fn reference(dims: &ExpertDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (width, hidden) = (dims.width, dims.hidden);
        let (a, offsets, w2) = (args.a.host(), args.offsets.host(), args.w2.host());
        let (b2, out_index) = (args.b2.map(View::host), args.out_index.map(View::host));
        let y = args.y.host();
        let used = dims.check_values(Self::ID, offsets, None)?;
        if let Some(index) = out_index {
            check_index(Self::ID, "out_index", &index[..used], dims.rows)?;
        }
        let share = T::Acc::count(dims.bias_shares);
        for (expert, bounds) in offsets.windows(2).enumerate() {
            for row in bounds[0] as usize..bounds[1] as usize {
                let a = &a[row * hidden..][..hidden];
                let y = &mut y[slot_of(out_index, row) * width..][..width];
                for (d, y) in y.iter_mut().enumerate() {
                    let w = &w2[(expert * width + d) * hidden..][..hidden];
                    let b2 = b2.map_or(T::Acc::ZERO, |b2| b2[expert * width + d].widen() / share);
                    *y = T::narrow(product_row(a, |k| w[k]) + b2);
                }
            }
        }
        Ok(())
    }
}
