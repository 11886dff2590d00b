//! What the grouped products share: sizes, activations, and how many blocks go through the tiles.

use super::Float;
use crate::call::{Address, Grid};
use crate::device::Cuda;
use crate::error::CudaError;
use moe_core::ops::{Activation, ExpertDims};
use moe_core::{DType, OpId, Path, ShapeError, within};

/// `THREADS`, `TILE` and `SHARED` of `kernels/`.
pub(super) const THREADS: u32 = 256;
pub(super) const TILE: usize = 128;
pub(super) const SHARED: u32 = 48 << 10;

pub(super) const GENERAL: Path = Path("general 128x128");
const MMA: Path = Path("mma 128x128");

/// The way that the kernels compute products of `T`, chosen when they were compiled: `Way` of `kernels/products.cuh`.
pub(super) fn path<T: Float>(cuda: &Cuda) -> Path {
    if cuda.facts().major >= 8 && T::DTYPE != DType::F32 { MMA } else { GENERAL }
}

/// `Sizes` of `kernels/tiles.cuh`.
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
    pub(super) fn of(op: OpId, dims: &ExpertDims) -> Result<Self, CudaError> {
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

/// `Formula` of `kernels/activation.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Formula {
    kind: u32,
    alpha: f32,
    limit: f32,
}

impl Formula {
    /// The numbers are those of `Kind` in `kernels/activation.cuh`.
    pub(super) fn of(op: OpId, activation: Activation) -> Result<Self, CudaError> {
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

/// The way that reads weights once and as fast as memory gives them.
pub(super) const DECODE: Path = Path("decode 32");

/// `LINES` of `kernels/decode.cuh`.
pub(super) const LINES: usize = 32;

/// More rows than these in all, or on average per expert, are faster in tiles.
const FEW: usize = 512;
const FEW_OF_EXPERT: usize = 32;

/// Whether [`DECODE`] can be taken: few rows, and lines of `width` elements that begin at multiples of 16 bytes. Kernels
/// count these in 32 bits; `lines` are the most that an operand has.
pub(super) fn few<T: Float>(
    cuda: &Cuda,
    dims: &ExpertDims,
    operands: [Address; 2],
    lines: usize,
    width: usize,
) -> bool {
    let bytes = width.saturating_mul(size_of::<T>());
    let aligned = bytes.is_multiple_of(16) && operands.iter().all(|address| address.is_multiple_of(16));
    let rows = FEW.min(FEW_OF_EXPERT.saturating_mul(dims.experts));
    let counted = lines.saturating_mul(bytes / 16) < u32::MAX as usize;
    cuda.facts().major >= 8 && dims.rows <= rows && aligned && counted
}

/// Warps for `columns` times LINES lines of weights of every expert that can have rows: as many as the shared memory of
/// Hopper has room for, which go on to further lines.
pub(super) fn decode_grid(cuda: &Cuda, dims: &ExpertDims, columns: usize) -> Grid {
    let resident = 5 * cuda.facts().processors as usize;
    Grid::new(columns.saturating_mul(dims.experts.min(dims.rows)).min(resident), 32)
}

/// Tiles that cover `len` rows or columns.
pub(super) fn tiles(len: usize) -> usize {
    len.div_ceil(TILE)
}

/// Blocks for at most `tiles` tiles: two on each multiprocessor, which go on to further tiles.
pub(super) fn grid(cuda: &Cuda, tiles: usize) -> Grid {
    let resident = 2 * cuda.facts().processors as usize;
    Grid::new(tiles.min(resident), THREADS).shared(SHARED)
}

/// Most row tiles: each expert's last one may be partly empty.
pub(super) fn row_tiles(dims: &ExpertDims) -> usize {
    dims.rows / TILE + dims.experts.min(dims.rows)
}
