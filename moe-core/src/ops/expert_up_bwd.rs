//! ExpertUpBwd: the input gradient's rows.
//!
//! `dx[out_index[r]] = s * (dz[r] * w13[e])` for row r of expert e; s is `weights[index[r]]` when the scores came first, else 1.

use super::experts::slot_of;
use super::{ExpertDims, Weight, product_row};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, check_index, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View};
use core::marker::PhantomData;

/// Backward of the first product to its input, for storage type `T`.
pub struct ExpertUpBwd<T>(PhantomData<T>);

/// Views of [`ExpertUpBwd`]. Rows at and beyond the last offset are neither read nor written.
pub struct ExpertUpBwdArgs<'a, D: Device, T: Scalar> {
    /// (rows, up_width): gradient at the activation's input
    pub dz: In<'a, D, T>,
    /// (experts + 1)
    pub offsets: In<'a, D, u32>,
    /// (experts, up_width, width)
    pub w13: Weight<'a, D, T>,
    /// (tokens * fan): scores that were applied before the experts
    pub weights: Option<In<'a, D, T::Acc>>,
    /// (rows): the row's slot; `None`: row r is slot r
    pub index: Option<In<'a, D, u32>>,
    /// (rows): the row of dx; all different
    pub out_index: Option<In<'a, D, u32>>,
    /// (rows, width), the rows named by offsets and index overwritten
    pub dx: Out<'a, D, T>,
}

impl<T: Scalar> Op for ExpertUpBwd<T> {
    const ID: OpId = OpId("expert_up_bwd");
    type Dims = ExpertDims;
    type Args<'a, D: Device> = ExpertUpBwdArgs<'a, D, T>;

    fn check<D: Device>(dims: &ExpertDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        dims.check(Self::ID, args.index.map(|i| i.len()), args.offsets.len())?;
        expect(Self::ID, "dz", &[dims.rows, dims.up_width()], args.dz.len())?;
        args.w13.check(Self::ID, "w13", &[dims.experts, dims.up_width(), dims.width])?;
        if let Some(weights) = &args.weights {
            expect(Self::ID, "weights", &[dims.tokens, dims.fan], weights.len())?;
        }
        if let Some(index) = &args.out_index {
            expect(Self::ID, "out_index", &[dims.rows], index.len())?;
        }
        expect(Self::ID, "dx", &[dims.rows, dims.width], args.dx.len())
    }

    fn reference(dims: &ExpertDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (width, up) = (dims.width, dims.up_width());
        let (dz, offsets, w13) = (args.dz.host(), args.offsets.host(), args.w13.host());
        let (index, out_index) = (args.index.map(View::host), args.out_index.map(View::host));
        let weights = args.weights.map(View::host);
        let dx = args.dx.host();
        let used = dims.check_values(Self::ID, offsets, index)?;
        if let Some(index) = out_index {
            check_index(Self::ID, "out_index", &index[..used], dims.rows)?;
        }
        for (expert, bounds) in offsets.windows(2).enumerate() {
            for row in bounds[0] as usize..bounds[1] as usize {
                let s = weights.map_or(T::Acc::ONE, |weights| weights[slot_of(index, row)]);
                let dz = &dz[row * up..][..up];
                let dx = &mut dx[slot_of(out_index, row) * width..][..width];
                for (d, dx) in dx.iter_mut().enumerate() {
                    *dx = T::narrow(s * product_row(dz, |n| w13[(expert * up + n) * width + d]));
                }
            }
        }
        Ok(())
    }
}
