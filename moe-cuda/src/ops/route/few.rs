//! The exact gate for few tokens: a warp per 32 experts and one, two or four tokens. The bits are those of the tiles.

use super::native::NativeParams;
use crate::call::{Call, Grid};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::ops::Float;
use moe_core::Path;
use moe_core::ops::{Route, RouteDims};

pub(in crate::ops) static IMAGE: Image =
    image!("route_few", ["route_few_1": 0, "route_few_2": 0, "route_few_4": 0]);

/// `LANES` of `kernels/route_few.cu`: threads of a block, and its experts.
const LANES: u32 = 32;

/// A kernel by its number of tokens.
#[derive(Clone, Copy)]
pub(super) struct Few {
    tokens: usize,
    /// half cycles for one d, if the block has the multiprocessor to itself
    alone: usize,
    /// half cycles for one d, in which others wait for what this block uses: the way from the cache
    shared: usize,
}

const KERNELS: [Few; 3] = [
    Few { tokens: 1, alone: 8, shared: 6 },
    Few { tokens: 2, alone: 9, shared: 6 },
    Few { tokens: 4, alone: 14, shared: 7 },
];

impl Few {
    fn blocks(self, dims: &RouteDims) -> usize {
        dims.tokens.div_ceil(self.tokens) * dims.experts.div_ceil(LANES as usize)
    }

    /// Half cycles for one d, to be compared with those of tiles.
    pub(super) fn time(self, dims: &RouteDims, processors: u32) -> usize {
        let blocks = self.blocks(dims).div_ceil(processors.max(1) as usize);
        self.alone.max(self.shared * blocks)
    }

    /// The kernel that is done first.
    pub(super) fn of(dims: &RouteDims, processors: u32) -> Self {
        KERNELS.into_iter().min_by_key(|few| few.time(dims, processors)).unwrap_or(KERNELS[0])
    }

    /// Computes the logits and zeroes the count of those that are not finite.
    pub(super) fn launch<T: Float>(
        self,
        call: &Call<'_, Route<T>>,
        dims: &RouteDims,
        params: &NativeParams,
    ) -> Result<Path, CudaError> {
        let (kernel, path) = match self.tokens {
            1 => (kernel!(T, "route_few_1"), Path("few 1x32")),
            2 => (kernel!(T, "route_few_2"), Path("few 2x32")),
            _ => (kernel!(T, "route_few_4"), Path("few 4x32")),
        };
        call.launch(kernel, Grid::new(self.blocks(dims).max(1), LANES), params)?;
        Ok(path)
    }
}

/// Whether lines begin at multiples of sixteen bytes, and kernels can count these in 32 bits.
pub(super) fn fits<T: Float>(cuda: &Cuda, dims: &RouteDims, params: &NativeParams) -> bool {
    let bytes = dims.width.saturating_mul(size_of::<T>());
    let aligned = bytes.is_multiple_of(16) && (params.x | params.gate).is_multiple_of(16);
    let counted = dims.experts.max(dims.tokens).saturating_mul(bytes / 16) < u32::MAX as usize;
    cuda.facts().major >= 8 && dims.rule.jitter.is_none() && aligned && counted
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::ops::RouteRule;

    #[test]
    fn more_tokens_share_a_warp() {
        let tokens_of_warp = |tokens| {
            let dims = RouteDims { tokens, width: 2048, experts: 128, top_k: 8, rule: RouteRule::default() };
            Few::of(&dims, 132).tokens
        };
        assert_eq!([1, 8, 64, 256].map(tokens_of_warp), [1, 1, 2, 4]);
    }
}
