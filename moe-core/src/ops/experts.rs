//! What the four expert products have in common: sizes, and weights in one of two forms.

use super::{Activation, PackDims, PackUse};
use crate::device::Device;
use crate::error::{OpId, ShapeError, check_index, check_offsets, expect, within};
use crate::host::Host;
use crate::scalar::{Elem, Scalar};
use crate::view::In;
use alloc::borrow::Cow;

/// Sizes of the expert products.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertDims {
    /// rows of the tokens' side (x, dout): T
    pub tokens: usize,
    /// slots per row of the tokens' side: K on one rank, 1 on received rows and without an index
    pub fan: usize,
    /// most rows: the length of row buffers and of the index. The true number is the last offset.
    pub rows: usize,
    /// experts on this rank
    pub experts: usize,
    /// D
    pub width: usize,
    /// F
    pub hidden: usize,
    /// between the products
    pub activation: Activation,
    /// ranks that add the same down bias, which is divided by it: the expert-tensor-parallel degree
    pub bias_shares: usize,
}

impl ExpertDims {
    /// Width of the up-projection: 2F, or F for ungated experts.
    pub fn up_width(&self) -> usize {
        self.activation.up_width(self.hidden)
    }

    /// Slots: what weights and their gradients are as long as.
    pub fn slots(&self) -> usize {
        self.tokens.saturating_mul(self.fan)
    }

    /// Dimensions of w13 or w2 in the layout that the op of this `use_` reads. The gate is not among them.
    pub fn pack(&self, use_: PackUse) -> PackDims {
        let (rows, cols) = match use_ {
            PackUse::Up | PackUse::UpBwd | PackUse::Gate => (self.up_width(), self.width),
            PackUse::Down | PackUse::DownBwd => (self.width, self.hidden),
        };
        PackDims { groups: self.experts, rows, cols, use_ }
    }

    /// Bounds that hold for every expert product.
    pub(super) fn check(&self, op: OpId, index: Option<usize>, offsets: usize) -> Result<(), ShapeError> {
        within(op, "fan", 1, u32::MAX as usize, self.fan)?;
        within(op, "bias_shares", 1, u32::MAX as usize, self.bias_shares)?;
        within(op, "experts", 0, i32::MAX as usize, self.experts)?;
        within(op, "rows", 0, u32::MAX as usize - 1, self.rows)?;
        within(op, "hidden", 0, i32::MAX as usize, self.hidden)?;
        expect(op, "offsets", &[self.experts + 1], offsets)?;
        match index {
            Some(len) => expect(op, "index", &[self.rows], len),
            None => {
                within(op, "fan without an index", 1, 1, self.fan)?;
                within(op, "rows without an index", 0, self.tokens, self.rows)
            }
        }
    }

    /// Checks the values of offsets and index on devices whose memory the host reads; returns the rows in use.
    ///
    /// # Errors
    /// [`ShapeError::Value`] at the first value that points outside.
    pub fn check_values(
        &self,
        op: OpId,
        offsets: &[u32],
        index: Option<&[u32]>,
    ) -> Result<usize, ShapeError> {
        check_offsets(op, offsets, self.rows)?;
        let used = offsets.last().map_or(0, |last| *last as usize);
        if let Some(index) = index {
            check_index(op, "index", &index[..used], self.slots())?;
        }
        Ok(used)
    }
}

/// A slot's source row and its place in per-slot buffers: `index[r]`, or r itself without an index.
pub(super) fn slot_of(index: Option<&[u32]>, row: usize) -> usize {
    index.map_or(row, |index| index[row] as usize)
}

/// Weights as they are, or in the layout of the device.
pub enum Weight<'a, D: Device, T: Elem> {
    /// row-major (groups, rows, cols)
    Plain(In<'a, D, T>),
    /// made by [`PackWeights`](super::PackWeights) for this op
    Packed(In<'a, D, u8>),
}

impl<D: Device, T: Elem> Clone for Weight<'_, D, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device, T: Elem> Copy for Weight<'_, D, T> {}

impl<'a, D: Device, T: Elem> Weight<'a, D, T> {
    /// Plain weights have the product of `dims` elements. Only the device knows how long its own layout is.
    ///
    /// # Errors
    /// [`ShapeError`] with the op's and the argument's name.
    pub fn check(&self, op: OpId, what: &'static str, dims: &[usize]) -> Result<(), ShapeError> {
        match self {
            Self::Plain(plain) => expect(op, what, dims, plain.len()),
            Self::Packed(_) => Ok(()),
        }
    }
}

impl<'a, T: Elem> Weight<'a, Host, T> {
    /// The elements in row-major order. The reference layout is the plain one, as bytes.
    pub fn host(self) -> Cow<'a, [T]> {
        match self {
            Self::Plain(plain) => Cow::Borrowed(plain.host()),
            Self::Packed(packed) => Cow::Owned(bytemuck::pod_collect_to_vec(packed.host())),
        }
    }
}

/// `sum over k, in order from +0, of left[k] * right(k)` in the accumulation type.
pub(crate) fn product_row<T: Scalar>(left: &[T], right: impl Fn(usize) -> T) -> T::Acc {
    use crate::scalar::Accum;
    let mut sum = T::Acc::ZERO;
    for (k, left) in left.iter().enumerate() {
        sum = left.widen().fused(right(k).widen(), sum);
    }
    sum
}
