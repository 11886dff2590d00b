//! ReGlu: `a[r, f] = max(z[r, f], 0) * z[r, F + f]` (Shazeer, "GLU Variants Improve Transformer", 2020).
//!
//! Every element by itself, in the accumulation type, rounded once. Rows at and beyond the last offset are neither read nor
//! written: their number is known on the device only.

use moe_core::{Accum, Device, Host, In, Op, OpId, Out, Scalar, ShapeError, check_offsets, expect};
use std::marker::PhantomData;

/// The gated activation, for storage type `T`.
pub struct ReGlu<T>(PhantomData<T>);

/// Sizes of [`ReGlu`] and [`ReGluBwd`](crate::ReGluBwd).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReGluDims {
    /// most rows
    pub rows: usize,
    /// experts
    pub experts: usize,
    /// F
    pub hidden: usize,
}

/// Views of [`ReGlu`].
pub struct ReGluArgs<'a, D: Device, T: Scalar> {
    /// (rows, 2 * hidden): gate half, then up half
    pub z: In<'a, D, T>,
    /// (experts + 1)
    pub offsets: In<'a, D, u32>,
    /// (rows, hidden), overwritten
    pub a: Out<'a, D, T>,
}

impl<T: Scalar> Op for ReGlu<T> {
    const ID: OpId = OpId("reglu");
    type Dims = ReGluDims;
    type Args<'a, D: Device> = ReGluArgs<'a, D, T>;

    fn check<D: Device>(dims: &ReGluDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        expect(Self::ID, "z", &[dims.rows, 2, dims.hidden], args.z.len())?;
        expect(Self::ID, "offsets", &[dims.experts + 1], args.offsets.len())?;
        expect(Self::ID, "a", &[dims.rows, dims.hidden], args.a.len())
    }

    fn reference(dims: &ReGluDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let (z, offsets, a) = (args.z.host(), args.offsets.host(), args.a.host());
        check_offsets(Self::ID, offsets, dims.rows)?;
        for row in 0..offsets[dims.experts] as usize {
            let (g, u) = z[2 * row * dims.hidden..][..2 * dims.hidden].split_at(dims.hidden);
            for (f, a) in a[row * dims.hidden..][..dims.hidden].iter_mut().enumerate() {
                *a = reglu(g[f], u[f]);
            }
        }
        Ok(())
    }
}

/// One element. NaN stays NaN.
pub(crate) fn reglu<T: Scalar>(g: T, u: T) -> T {
    let (g, u) = (g.widen(), u.widen());
    T::narrow(if g < T::Acc::ZERO { T::Acc::ZERO * u } else { g * u })
}
