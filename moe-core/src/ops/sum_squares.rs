//! SumSquares: a tensor's part of the squared gradient norm.
//!
//! Chunks of 1024 elements, each summed in order from +0, then chunk to chunk from +0; the whole overwrites the sum or is added to it
//! once. Repeatable on one backend; across backends equal within rounding.

use super::CHUNK;
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out};
use core::marker::PhantomData;

/// Sum of squares of a gradient of weights of storage type `T`.
pub struct SumSquares<T>(PhantomData<T>);

/// Sizes of [`SumSquares`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumSquaresDims {
    /// elements
    pub len: usize,
    /// add to the sum instead of overwriting it
    pub accumulate: bool,
}

/// Views of [`SumSquares`].
pub struct SumSquaresArgs<'a, D: Device, T: Scalar> {
    /// (len)
    pub values: In<'a, D, T::Acc>,
    /// (1), overwritten or added to
    pub sum: Out<'a, D, T::Acc>,
}

impl<T: Scalar> Op for SumSquares<T> {
    const ID: OpId = OpId("sum_squares");
    type Dims = SumSquaresDims;
    type Args<'a, D: Device> = SumSquaresArgs<'a, D, T>;

    fn check<D: Device>(dims: &SumSquaresDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        expect(Self::ID, "values", &[dims.len], args.values.len())?;
        expect(Self::ID, "sum", &[1], args.sum.len())
    }

    fn reference(dims: &SumSquaresDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let mut sum = T::Acc::ZERO;
        for chunk in args.values.host().chunks(CHUNK) {
            sum += chunk.iter().fold(T::Acc::ZERO, |part, value| value.fused(*value, part));
        }
        let out = &mut args.sum.host()[0];
        *out = if dims.accumulate { *out + sum } else { sum };
        Ok(())
    }
}
