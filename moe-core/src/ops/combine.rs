//! Combine: a token's output is the weighted sum of its experts' rows.
//!
//! `out[t] = sum over k of weights[t, k] * y[row_of_slot[t * K + k]]`, in slot order, then the base terms in order, each
//! `scale[t] * rows[t]`, in the accumulation type, rounded once. No atomics: the bits depend neither on the number of
//! threads nor on the other tokens. A dropped slot has the row [`NO_ROW`] and adds nothing. With `weights: None` the
//! rows are summed as they are, which is how the input gradients of a token's rows come together in backward.

use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect, within};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View};
use core::marker::PhantomData;

/// The row of a slot that was dropped.
pub const NO_ROW: u32 = u32::MAX;

/// Weighted sum of expert rows per token, for storage type `T`.
pub struct Combine<T>(PhantomData<T>);

/// Sizes of [`Combine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineDims {
    /// T
    pub tokens: usize,
    /// K
    pub top_k: usize,
    /// D
    pub width: usize,
    /// rows of y
    pub rows: usize,
}

/// A term that is added to every token.
pub struct Base<'a, D: Device, T: Scalar> {
    /// (tokens, width)
    pub rows: In<'a, D, T>,
    /// (tokens); 1 if absent
    pub scale: Option<In<'a, D, T::Acc>>,
}

impl<D: Device, T: Scalar> Clone for Base<'_, D, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device, T: Scalar> Copy for Base<'_, D, T> {}

/// Views of [`Combine`].
pub struct CombineArgs<'a, D: Device, T: Scalar> {
    /// (rows, width)
    pub y: In<'a, D, T>,
    /// (tokens * top_k)
    pub row_of_slot: In<'a, D, u32>,
    /// (tokens, top_k)
    pub weights: Option<In<'a, D, T::Acc>>,
    /// terms added last: the shared experts' output; in backward the gate's and the shared experts' parts
    pub base: [Option<Base<'a, D, T>>; 3],
    /// (tokens, width), overwritten
    pub out: Out<'a, D, T>,
}

impl<T: Scalar> Op for Combine<T> {
    const ID: OpId = OpId("combine");
    type Dims = CombineDims;
    type Args<'a, D: Device> = CombineArgs<'a, D, T>;

    fn check<D: Device>(dims: &CombineDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        within(Self::ID, "rows", 0, NO_ROW as usize - 1, dims.rows)?;
        expect(Self::ID, "y", &[dims.rows, dims.width], args.y.len())?;
        expect(Self::ID, "row_of_slot", &[dims.tokens, dims.top_k], args.row_of_slot.len())?;
        if let Some(weights) = &args.weights {
            expect(Self::ID, "weights", &[dims.tokens, dims.top_k], weights.len())?;
        }
        for base in args.base.iter().flatten() {
            expect(Self::ID, "base", &[dims.tokens, dims.width], base.rows.len())?;
            if let Some(scale) = &base.scale {
                expect(Self::ID, "base scale", &[dims.tokens], scale.len())?;
            }
        }
        expect(Self::ID, "out", &[dims.tokens, dims.width], args.out.len())
    }

    fn reference(dims: &CombineDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let CombineDims { top_k, width, .. } = *dims;
        let (y, rows, out) = (args.y.host(), args.row_of_slot.host(), args.out.host());
        let weights = args.weights.map(View::host);
        let base = args.base.map(|base| base.map(|base| (base.rows.host(), base.scale.map(View::host))));
        dims.check_rows(rows)?;
        for (at, out) in out.iter_mut().enumerate() {
            let (token, column) = (at / width, at % width);
            let mut sum = T::Acc::ZERO;
            for slot in token * top_k..(token + 1) * top_k {
                if rows[slot] != NO_ROW {
                    let weight = weights.map_or(T::Acc::ONE, |weights| weights[slot]);
                    sum = weight.fused(y[rows[slot] as usize * width + column].widen(), sum);
                }
            }
            for (rows, scale) in base.iter().flatten() {
                let scale = scale.map_or(T::Acc::ONE, |scale| scale[token]);
                sum = scale.fused(rows[at].widen(), sum);
            }
            *out = T::narrow(sum);
        }
        Ok(())
    }
}

impl CombineDims {
    /// Checks the values of `row_of_slot` on devices whose memory the host reads.
    ///
    /// # Errors
    /// [`ShapeError::Value`] at the first row that is neither in y nor [`NO_ROW`].
    pub fn check_rows(&self, row_of_slot: &[u32]) -> Result<(), ShapeError> {
        let outside = |row: &u32| *row != NO_ROW && *row as usize >= self.rows;
        match row_of_slot.iter().position(outside) {
            None => Ok(()),
            Some(at) => Err(ShapeError::Value {
                op: OpId("combine"),
                what: "row_of_slot",
                at,
                max: self.rows.saturating_sub(1),
                got: row_of_slot[at] as usize,
            }),
        }
    }
}
