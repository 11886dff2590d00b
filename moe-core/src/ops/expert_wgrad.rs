//! ExpertWgrad: the gradient of one of the experts' weights and of its bias.
//!
//! `dw[e] = sum over rows r of e, in order from +0, of left[r]^T * (v * right[r])`, added to the gradient once or overwriting
//! it; empty experts overwrite with zeros. v is `right_weights[index[r]]`, or 1. `dbias[e] = sum of u * left[r]`, u being
//! `bias_weights[index[r]]`, or 1. One operand, or none, is gathered: its row is `index[r] / fan`.
//!
//! * w2: left = dout (gathered), right = a', bias weights = the scores when they came after.
//! * w13: left = dz, right = x (gathered), right weights = the scores when they came first.

use super::experts::slot_of;
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, check_index, check_offsets, expect, within};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View, ViewMut};
use core::marker::PhantomData;

/// Weight and bias gradient of a grouped product, for storage type `T`.
pub struct ExpertWgrad<T>(PhantomData<T>);

/// Sizes of [`ExpertWgrad`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgradDims {
    /// rows of the gathered operand; not used if none is
    pub tokens: usize,
    /// slots per row of the gathered operand
    pub fan: usize,
    /// most rows: the length of the index and of operands that are not gathered
    pub rows: usize,
    /// experts on this rank
    pub experts: usize,
    /// columns of the left operand: rows of the gradient
    pub left: usize,
    /// columns of the right operand: columns of the gradient
    pub right: usize,
    /// the left operand is gathered
    pub gather_left: bool,
    /// the right operand is gathered
    pub gather_right: bool,
    /// add to the gradients instead of overwriting them
    pub accumulate: bool,
}

/// Views of [`ExpertWgrad`].
pub struct ExpertWgradArgs<'a, D: Device, T: Scalar> {
    /// (rows, left), or (tokens, left) if gathered
    pub left: In<'a, D, T>,
    /// (rows, right), or (tokens, right) if gathered
    pub right: In<'a, D, T>,
    /// (rows): the row's slot; `None`: row r is slot r and token r
    pub index: Option<In<'a, D, u32>>,
    /// (experts + 1)
    pub offsets: In<'a, D, u32>,
    /// (tokens * fan): factors on the right operand's rows
    pub right_weights: Option<In<'a, D, T::Acc>>,
    /// (tokens * fan): factors on the left operand's rows in the bias's sum
    pub bias_weights: Option<In<'a, D, T::Acc>>,
    /// (experts, left, right), overwritten or added to
    pub dw: Out<'a, D, T::Acc>,
    /// (experts, left), overwritten or added to
    pub dbias: Option<Out<'a, D, T::Acc>>,
}

impl<T: Scalar> Op for ExpertWgrad<T> {
    const ID: OpId = OpId("expert_wgrad");
    type Dims = WgradDims;
    type Args<'a, D: Device> = ExpertWgradArgs<'a, D, T>;

    fn check<D: Device>(dims: &WgradDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        let WgradDims { tokens, fan, rows, experts, left, right, gather_left, gather_right, .. } = *dims;
        within(Self::ID, "fan", 1, u32::MAX as usize, fan)?;
        within(Self::ID, "rows", 0, u32::MAX as usize - 1, rows)?;
        within(Self::ID, "experts", 0, i32::MAX as usize, experts)?;
        match &args.index {
            Some(index) => expect(Self::ID, "index", &[rows], index.len())?,
            None => {
                within(Self::ID, "fan without an index", 1, 1, fan)?;
                within(Self::ID, "rows without an index", 0, tokens, rows)?;
            }
        }
        expect(Self::ID, "left", &[if gather_left { tokens } else { rows }, left], args.left.len())?;
        expect(Self::ID, "right", &[if gather_right { tokens } else { rows }, right], args.right.len())?;
        expect(Self::ID, "offsets", &[experts + 1], args.offsets.len())?;
        if let Some(weights) = &args.right_weights {
            expect(Self::ID, "right_weights", &[tokens, fan], weights.len())?;
        }
        if let Some(weights) = &args.bias_weights {
            expect(Self::ID, "bias_weights", &[tokens, fan], weights.len())?;
        }
        expect(Self::ID, "dw", &[experts, left, right], args.dw.len())?;
        match &args.dbias {
            Some(dbias) => expect(Self::ID, "dbias", &[experts, left], dbias.len()),
            None => Ok(()),
        }
    }

    fn reference(dims: &WgradDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let WgradDims { tokens, fan, rows, left: m, right: n, accumulate, .. } = *dims;
        let (left, right, offsets) = (args.left.host(), args.right.host(), args.offsets.host());
        let index = args.index.map(View::host);
        let (scale, bias_scale) = (args.right_weights.map(View::host), args.bias_weights.map(View::host));
        check_offsets(Self::ID, offsets, rows)?;
        let used = offsets.last().map_or(0, |last| *last as usize);
        if let Some(index) = index {
            check_index(Self::ID, "index", &index[..used], tokens.saturating_mul(fan))?;
        }
        let source = |gathered: bool, row: usize| if gathered { slot_of(index, row) / fan } else { row };
        let left = |row: usize, i: usize| left[source(dims.gather_left, row) * m + i].widen();
        let right = |row: usize, j: usize| right[source(dims.gather_right, row) * n + j].widen();
        let factor = |weights: Option<&[T::Acc]>, row: usize| {
            weights.map_or(T::Acc::ONE, |weights| weights[slot_of(index, row)])
        };
        let store = |out: &mut T::Acc, sum| *out = if accumulate { *out + sum } else { sum };
        let (dw, mut dbias) = (args.dw.host(), args.dbias.map(ViewMut::host));
        for (expert, bounds) in offsets.windows(2).enumerate() {
            let rows = bounds[0] as usize..bounds[1] as usize;
            for i in 0..m {
                for j in 0..n {
                    let sum = rows.clone().fold(T::Acc::ZERO, |sum, row| {
                        left(row, i).fused(factor(scale, row) * right(row, j), sum)
                    });
                    store(&mut dw[(expert * m + i) * n + j], sum);
                }
                if let Some(dbias) = &mut dbias {
                    let sum = rows
                        .clone()
                        .fold(T::Acc::ZERO, |sum, row| factor(bias_scale, row).fused(left(row, i), sum));
                    store(&mut dbias[expert * m + i], sum);
                }
            }
        }
        Ok(())
    }
}
