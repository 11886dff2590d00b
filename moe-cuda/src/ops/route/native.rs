//! The native gate: logits in tiles on the matrix units of sm_80 and later, for bf16 and f16. All tiles add in one order,
//! so that a token's bits do not depend on how many there are.

use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::ops::Float;
use moe_core::ops::{GateMath, Route, RouteDims};
use moe_core::{DType, Path};

pub(in crate::ops) static IMAGE: Image = image!(
    "route_native",
    [],
    single: [
        "route_native_64x32_bf16": TILES[0].shared,
        "route_native_64x32_f16": TILES[0].shared,
        "route_native_64x64_bf16": TILES[1].shared,
        "route_native_64x64_f16": TILES[1].shared,
        "route_native_64x128_bf16": TILES[2].shared,
        "route_native_64x128_f16": TILES[2].shared,
        "route_native_128x128_bf16": TILES[3].shared,
        "route_native_128x128_f16": TILES[3].shared,
    ]
);

/// `NativeParams` of `kernels/route_native.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct NativeParams {
    pub(super) x: Address,
    pub(super) gate: Address,
    pub(super) gate_bias: Address,
    pub(super) logits: Address,
    pub(super) non_finite: Address,
    pub(super) tokens: u32,
    pub(super) width: u32,
    pub(super) experts: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for NativeParams {}

/// A kernel's tile of logits.
struct Tile {
    bf16: &'static str,
    f16: &'static str,
    path: Path,
    tokens: usize,
    experts: usize,
    threads: u32,
    /// bytes of shared memory
    shared: u32,
}

macro_rules! tile {
    ($name:literal, $tokens:literal x $experts:literal, $threads:literal, $depth:literal x $ring:literal) => {
        Tile {
            bf16: concat!("route_native_", $name, "_bf16"),
            f16: concat!("route_native_", $name, "_f16"),
            path: Path(concat!("native ", $name)),
            tokens: $tokens,
            experts: $experts,
            threads: $threads,
            shared: ($tokens + $experts) * $depth * $ring * 2,
        }
    };
}

/// `GATE` of `kernels/route_native.cu`.
const TILES: [Tile; 4] = [
    tile!("64x32", 64 x 32, 256, 128 x 4),
    tile!("64x64", 64 x 64, 256, 64 x 6),
    tile!("64x128", 64 x 128, 256, 64 x 4),
    tile!("128x128", 128 x 128, 512, 64 x 4),
];

impl Tile {
    fn blocks(&self, dims: &RouteDims) -> usize {
        dims.tokens.div_ceil(self.tokens) * dims.experts.div_ceil(self.experts)
    }

    /// The tile with the fewest lines of x and gate to be fetched by one multiprocessor, of those that the device can run.
    fn of(dims: &RouteDims, processors: u32, shared: u32) -> &'static Self {
        let lines = |tile: &&Self| {
            let blocks = tile.blocks(dims).div_ceil(processors.max(1) as usize);
            blocks * (tile.tokens + tile.experts)
        };
        let fitting = TILES.iter().filter(|tile| tile.shared <= shared);
        fitting.min_by_key(lines).unwrap_or(&TILES[0])
    }
}

/// Whether the rule asks for it and the device has it, with every line at a multiple of sixteen bytes.
pub(super) fn fits<T: Float>(cuda: &Cuda, dims: &RouteDims, params: &NativeParams) -> bool {
    let wanted = dims.rule.gate == GateMath::Native && dims.rule.jitter.is_none();
    let aligned = dims.width.is_multiple_of(8) && (params.x | params.gate).is_multiple_of(16);
    let facts = cuda.facts();
    let able = facts.major >= 8 && facts.shared >= TILES[0].shared && T::DTYPE != DType::F32;
    wanted && able && aligned
}

/// Computes the logits and zeroes the count of those that are not finite.
pub(super) fn launch<T: Float>(
    call: &Call<'_, Route<T>>,
    dims: &RouteDims,
    params: &NativeParams,
) -> Result<Path, CudaError> {
    let facts = call.cuda.facts();
    let tile = Tile::of(dims, facts.processors, facts.shared);
    let kernel = if T::DTYPE == DType::Bf16 { tile.bf16 } else { tile.f16 };
    let grid = Grid::new(tile.blocks(dims).max(1), tile.threads).shared(tile.shared);
    call.launch(kernel, grid, params)?;
    Ok(tile.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::ops::RouteRule;

    /// The tile for a shape on a GPU of 132 multiprocessors.
    fn path(tokens: usize, experts: usize, shared: u32) -> &'static str {
        let dims = RouteDims { tokens, width: 2048, experts, top_k: 1, rule: RouteRule::default() };
        Tile::of(&dims, 132, shared).path.0
    }

    #[test]
    fn the_tile_follows_from_tokens_and_experts() {
        let most = 227 << 10;
        assert_eq!(path(1, 128, most), "native 64x32");
        assert_eq!(path(8192, 32, most), "native 64x32");
        assert_eq!(path(8192, 64, most), "native 64x64");
        assert_eq!(path(8192, 128, most), "native 64x128");
        assert_eq!(path(16384, 128, most), "native 128x128");
        assert_eq!(path(8192, 256, most), "native 128x128");
    }

    #[test]
    fn a_device_with_less_shared_memory_has_smaller_tiles() {
        assert_eq!(path(16384, 128, 99 << 10), "native 64x128");
    }
}
