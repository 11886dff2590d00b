//! One token or two: logits and choice in one launch, of one cluster.

use super::few;
use super::{NativeParams, RouteParams, blocks_with_rows};
use crate::call::{Call, Grid};
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::ops::Float;
use moe_core::Path;
use moe_core::ops::{GateMath, Route, RouteDims};

pub(in crate::ops) static IMAGE: Image = image!("route_one", ["route_one": SHARED, "route_two": SHARED]);

/// Of `kernels/route_one.cu`: experts of a block, its threads, its dynamic shared memory.
const LANES: usize = 32;
const BLOCK: u32 = 288;
const SHARED: u32 = 80 << 10;

/// Blocks of a cluster that every device with clusters can run.
const LARGEST_CLUSTER: usize = 8;

/// The launch, if device and sizes allow it.
pub(super) fn launch<T: Float>(
    call: &Call<'_, Route<T>>,
    dims: &RouteDims,
    params: &RouteParams,
    operands: &NativeParams,
) -> Result<Option<Path>, CudaError> {
    let facts = call.cuda.facts();
    let blocks = dims.experts.div_ceil(LANES);
    let able = facts.major >= 9 && facts.shared >= SHARED && blocks <= LARGEST_CLUSTER;
    let (kernel, path) = match dims.tokens {
        1 => (kernel!(T, "route_one"), Path("at once 1x32")),
        2 => (kernel!(T, "route_two"), Path("at once 2x32")),
        _ => return Ok(None),
    };
    let wanted = dims.rule.gate == GateMath::Exact && dims.width > 0 && blocks_with_rows(dims) == 0;
    if !able || !wanted || !few::fits::<T>(call.cuda, dims, operands) {
        return Ok(None);
    }
    call.launch(kernel, Grid::new(blocks, BLOCK).shared(SHARED).cluster(), params)?;
    Ok(Some(path))
}
