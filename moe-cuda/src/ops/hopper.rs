//! What the Hopper kernels of the expert products share: when they fit, their sizes, their images.

use super::Float;
use super::products::count;
use crate::call::{Address, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::Image;
use crate::tensor_map::TensorMap;
use moe_core::ops::{Activation, ExpertDims};
use moe_core::{DType, Path};

/// Tiles of 128 rows and 256 columns, by wgmma.
pub(super) const HOPPER: Path = Path("hopper 128x256");

/// `BLOCK`, `MOST_EXPERTS` and the shared memory of `kernels/hopper.cuh`.
const THREADS: u32 = 384;
const MOST_EXPERTS: usize = 512;
const SHARED: u32 = 220_288;
/// `SHARED_BYTES` of `kernels/expert_wgrad_hopper.cu`.
pub(super) const SHARED_WGRAD: u32 = 231_424;

/// Embeds the Hopper kernel `$name`, for both 16-bit types.
macro_rules! hopper_image {
    ($name:literal, $shared:expr) => {
        crate::image::Image {
            code: include_bytes!(concat!("../../images/", $name, ".fatbin")),
            kernels: &[(concat!($name, "_bf16"), $shared), (concat!($name, "_f16"), $shared)],
            hopper: true,
        }
    };
}

pub(super) static IMAGES: [Image; 5] = [
    hopper_image!("expert_up_hopper", SHARED),
    hopper_image!("expert_down_hopper", SHARED),
    hopper_image!("expert_down_bwd_hopper", SHARED),
    hopper_image!("expert_up_bwd_hopper", SHARED),
    hopper_image!("expert_wgrad_hopper", SHARED_WGRAD),
];

/// One block on each multiprocessor.
pub(super) fn grid(cuda: &Cuda) -> Grid {
    Grid::new(cuda.facts().processors as usize, THREADS).shared(SHARED)
}

/// Whether this device and type have Hopper's kernels, and lines and addresses are such that they can be copied 16 bytes
/// at a time.
pub(super) fn fits<T: Float>(cuda: &Cuda, experts: usize, lines: [usize; 2], addresses: &[Address]) -> bool {
    cuda.facts().major == 9
        && T::DTYPE != DType::F32
        && (1..=MOST_EXPERTS).contains(&experts)
        && lines.iter().all(|line| *line > 0 && line % 8 == 0)
        && addresses.iter().all(|address| address % 16 == 0)
}

/// As [`fits`], for the products of rows.
pub(super) fn rows_fit<T: Float>(cuda: &Cuda, dims: &ExpertDims, addresses: &[Address]) -> bool {
    let sizes = dims.rows > 0
        && dims.tokens > 0
        && gathers(dims.tokens, dims.width)
        && dims.rows <= i32::MAX as usize;
    sizes && fits::<T>(cuda, dims.experts, [dims.width, dims.hidden], addresses)
}

/// Whether every 16 bytes of a gathered operand of so many lines have a number of 32 bits.
pub(super) fn gathers(lines: usize, width: usize) -> bool {
    lines.saturating_mul(width / 8) < u32::MAX as usize
}

/// The activation that the kernels have built in.
pub(super) fn is_swiglu(dims: &ExpertDims) -> bool {
    dims.activation == Activation::SwiGlu
}

/// `RowsParams` of `kernels/rows_hopper.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) left: TensorMap,
    pub(super) right: TensorMap,
    pub(super) more: TensorMap,
    pub(super) source: Address,
    pub(super) index: Address,
    pub(super) offsets: Address,
    pub(super) tokens: u32,
    pub(super) fan: u32,
    pub(super) slots: u32,
    pub(super) rows: u32,
    pub(super) experts: u32,
    pub(super) depth: u32,
    pub(super) columns: u32,
    pub(super) tiles: u32,
}

impl Rows {
    /// A product of depth `depth` to `columns` columns, in tiles of `tile` columns; operands are still missing.
    pub(super) fn new(
        dims: &ExpertDims,
        offsets: Address,
        depth: usize,
        columns: usize,
        tile: usize,
    ) -> Self {
        Self {
            left: TensorMap::NONE,
            right: TensorMap::NONE,
            more: TensorMap::NONE,
            source: 0,
            index: 0,
            offsets,
            tokens: count(dims.tokens),
            fan: dims.fan as u32,
            slots: count(dims.slots()),
            rows: dims.rows as u32,
            experts: dims.experts as u32,
            depth: depth as u32,
            columns: columns as u32,
            tiles: columns.div_ceil(tile) as u32,
        }
    }

    /// Left rows lie in order: (rows, depth) at `address`.
    pub(super) fn packed<T: Float>(mut self, address: Address) -> Result<Self, CudaError> {
        self.left = TensorMap::new::<T, 2>(address, [self.depth as usize, self.rows as usize], [64, 128])?;
        Ok(self)
    }

    /// Left rows are gathered from (tokens, depth) at `address`.
    pub(super) fn gathered(mut self, address: Address, index: Address) -> Self {
        (self.source, self.index) = (address, index);
        self
    }

    /// Weights (experts, columns, depth), read in boxes of `lines` lines; with a second half of columns if `halves`.
    pub(super) fn along<T: Float>(
        mut self,
        address: Address,
        lines: u32,
        halves: usize,
    ) -> Result<Self, CudaError> {
        let sizes = [self.depth as usize, halves * self.columns as usize, self.experts as usize];
        self.right = TensorMap::new::<T, 3>(address, sizes, [64, lines, 1])?;
        Ok(self)
    }

    /// Weights (experts, depth, columns).
    pub(super) fn across<T: Float>(mut self, address: Address) -> Result<Self, CudaError> {
        let sizes = [self.columns as usize, self.depth as usize, self.experts as usize];
        self.right = TensorMap::new::<T, 3>(address, sizes, [64, 64, 1])?;
        Ok(self)
    }
}

/// `StoreParams` of `kernels/store_hopper.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct StoreParams {
    pub(super) rows: Rows,
    pub(super) bias: Address,
    pub(super) weights: Address,
    pub(super) out_index: Address,
    pub(super) out: Address,
    pub(super) bias_share: f32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for StoreParams {}
