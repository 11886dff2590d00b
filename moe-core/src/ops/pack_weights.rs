//! PackWeights: weights in the layout that a device's product reads fastest.
//!
//! The layout is the device's secret; its size is [`Device::packed_len`]. The reference layout is the plain one, as bytes.

use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect, product};
use crate::host::Host;
use crate::scalar::Scalar;
use crate::view::{In, Out};
use core::marker::PhantomData;

/// Change of layout of weights, for storage type `T`.
pub struct PackWeights<T>(PhantomData<T>);

/// The op that will read the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackUse {
    /// the gate, read by Route and GateBwd: (1, E, D)
    Gate,
    /// w13, read by ExpertUp: (E, up width, D)
    Up,
    /// w2, read by ExpertDown: (E, D, F)
    Down,
    /// w13, read by ExpertUpBwd
    UpBwd,
    /// w2, read by ExpertDownBwd
    DownBwd,
}

/// Sizes of [`PackWeights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackDims {
    /// experts, or 1
    pub groups: usize,
    /// rows of a group
    pub rows: usize,
    /// columns of a group
    pub cols: usize,
    /// the op that will read
    pub use_: PackUse,
}

/// Views of [`PackWeights`].
pub struct PackWeightsArgs<'a, D: Device, T: Scalar> {
    /// (groups, rows, cols)
    pub plain: In<'a, D, T>,
    /// bytes: as many as [`Device::packed_len`] says; overwritten
    pub packed: Out<'a, D, u8>,
}

impl<T: Scalar> Op for PackWeights<T> {
    const ID: OpId = OpId("pack_weights");
    type Dims = PackDims;
    type Args<'a, D: Device> = PackWeightsArgs<'a, D, T>;

    fn check<D: Device>(dims: &PackDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        expect(Self::ID, "plain", &[dims.groups, dims.rows, dims.cols], args.plain.len())
    }

    fn reference(dims: &PackDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let bytes = product(Self::ID, "packed", &[dims.groups, dims.rows, dims.cols, size_of::<T>()])?;
        expect(Self::ID, "packed", &[bytes], args.packed.len())?;
        args.packed.host().copy_from_slice(bytemuck::cast_slice(args.plain.host()));
        Ok(())
    }
}
