//! What the grouped products share: the way that they are computed, sizes, activations, and how many groups go through the tiles.

use super::Float;
use crate::call::Grid;
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::platform::Facts;
use crate::way::Way;
use moe_core::ops::{Activation, ExpertDims};
use moe_core::{OpId, ShapeError, within};

/// `Sizes` of `kernels/tiles.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    tokens: u32,
    fan: u32,
    slots: u32,
    rows: u32,
    experts: u32,
    width: u32,
    hidden: u32,
}

impl Sizes {
    /// Kernels count in 32 bits. No index names a token or slot beyond that.
    pub(super) fn of(op: OpId, dims: &ExpertDims) -> Result<Self, OpenClError> {
        within(op, "width", 0, i32::MAX as usize, dims.width)?;
        within(op, "up_width", 0, i32::MAX as usize, dims.up_width())?;
        Ok(Self {
            tokens: count(dims.tokens),
            fan: dims.fan as u32,
            slots: count(dims.slots()),
            rows: dims.rows as u32,
            experts: dims.experts as u32,
            width: dims.width as u32,
            hidden: dims.hidden as u32,
        })
    }
}

/// A number of which at most `u32::MAX` can be named.
pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `Formula` of `kernels/activation.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Formula {
    kind: u32,
    alpha: f32,
    limit: f32,
}

impl Formula {
    /// The numbers are those of `kernels/activation.cl`.
    pub(super) fn of(op: OpId, activation: Activation) -> Result<Self, OpenClError> {
        let plain = |kind| Ok(Self { kind, alpha: 0.0, limit: 0.0 });
        match activation {
            Activation::SwiGlu => plain(0),
            Activation::GeGlu => plain(1),
            Activation::GeGluTanh => plain(2),
            Activation::ClampedSwiGlu { alpha, limit } => Ok(Self { kind: 3, alpha, limit }),
            Activation::Gelu => plain(4),
            Activation::GeluTanh => plain(5),
            Activation::SquaredRelu => plain(6),
            Activation::Linear => plain(7),
            _ => Err(ShapeError::Combination { op, what: "activation", why: "has no kernel" }.into()),
        }
    }
}

impl OpenCl {
    /// The way of a product of `T`; with factors on an operand one that computes in f32.
    pub(super) fn way<T: Float>(&self, factors: bool) -> Way {
        self.ways().choose(T::DTYPE, factors)
    }
}

/// Most row tiles: each expert's last one may be partly empty.
pub(super) fn row_tiles(way: Way, dims: &ExpertDims) -> usize {
    dims.rows / way.tile_rows() + dims.experts.min(dims.rows)
}

/// Groups for at most `tiles` tiles, which go on to further ones: enough that no compute unit waits long for the last.
pub(super) fn grid(facts: &Facts, way: Way, tiles: usize) -> Grid {
    Grid::new(tiles.min(GROUPS_OF_UNIT * facts.units.max(1)), way.items())
}

const GROUPS_OF_UNIT: usize = 64;
