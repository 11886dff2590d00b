//! ReGluBwd: `dg = da * u` where `g > 0`, else 0, and `du = da * max(g, 0)`, over g and u.

use crate::ReGluDims;
use moe_core::{Accum, Device, Host, In, Op, OpId, Out, Scalar, ShapeError, check_offsets, expect};
use std::marker::PhantomData;

/// Backward of [`ReGlu`](crate::ReGlu), for storage type `T`.
pub struct ReGluBwd<T>(PhantomData<T>);

/// Views of [`ReGluBwd`]. Rows at and beyond the last offset are neither read nor written.
pub struct ReGluBwdArgs<'a, D: Device, T: Scalar> {
    /// (rows, hidden)
    pub da: In<'a, D, T>,
    /// (experts + 1)
    pub offsets: In<'a, D, u32>,
    /// (rows, 2 * hidden): z on entry, dz on return
    pub z: Out<'a, D, T>,
}

impl<T: Scalar> Op for ReGluBwd<T> {
    const ID: OpId = OpId("reglu_bwd");
    type Dims = ReGluDims;
    type Args<'a, D: Device> = ReGluBwdArgs<'a, D, T>;

    fn check<D: Device>(dims: &ReGluDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        expect(Self::ID, "da", &[dims.rows, dims.hidden], args.da.len())?;
        expect(Self::ID, "offsets", &[dims.experts + 1], args.offsets.len())?;
        expect(Self::ID, "z", &[dims.rows, 2, dims.hidden], args.z.len())
    }

    fn reference(dims: &ReGluDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (da, offsets, z) = (args.da.host(), args.offsets.host(), args.z.host());
        check_offsets(Self::ID, offsets, dims.rows)?;
        for row in 0..offsets[dims.experts] as usize {
            let (g, u) = z[2 * row * dims.hidden..][..2 * dims.hidden].split_at_mut(dims.hidden);
            for (f, da) in da[row * dims.hidden..][..dims.hidden].iter().enumerate() {
                (g[f], u[f]) = reglu_bwd(g[f], u[f], *da);
            }
        }
        Ok(())
    }
}

/// One element's gradients at g and u.
pub(crate) fn reglu_bwd<T: Scalar>(g: T, u: T, da: T) -> (T, T) {
    let (g, u, da) = (g.widen(), u.widen(), da.widen());
    let (dg, du) = if g > T::Acc::ZERO { (da * u, da * g) } else { (T::Acc::ZERO, T::Acc::ZERO) };
    (T::narrow(dg), T::narrow(du))
}
