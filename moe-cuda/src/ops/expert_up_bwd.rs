//! ExpertUpBwd: the product with w13 as it lies, rows written to their places.

use super::Float;
use super::hopper::{self, HOPPER, Rows, StoreParams};
use super::products::{SHARED, Sizes, grid, path, row_tiles, tiles};
use crate::call::{Address, Call, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use moe_core::ops::{ExpertDims, ExpertUpBwd, ExpertUpBwdArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static IMAGE: Image = image!("expert_up_bwd", ["expert_up_bwd": SHARED]);

/// `ExpertUpBwdParams` of `kernels/expert_up_bwd.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertUpBwdParams {
    dz: Address,
    offsets: Address,
    w13: Address,
    weights: Address,
    index: Address,
    out_index: Address,
    dx: Address,
    sizes: Sizes,
    up: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertUpBwdParams {}

impl<T: Float> Kernel<ExpertUpBwd<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertUpBwdArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<ExpertUpBwd<T>>::new(self, stream, dims, &args)?;
        let params = ExpertUpBwdParams {
            dz: call.read("dz", args.dz)?,
            offsets: call.read("offsets", args.offsets)?,
            w13: call.weight("w13", args.w13)?,
            weights: call.read_some("weights", args.weights)?,
            index: call.read_some("index", args.index)?,
            out_index: call.read_some("out_index", args.out_index)?,
            dx: call.write("dx", args.dx)?,
            sizes: Sizes::of(ExpertUpBwd::<T>::ID, dims)?,
            up: dims.up_width() as u32,
        };
        match hopper(&call, dims, &params)? {
            Some(path) => Ok(path),
            None => general(&call, dims, &params),
        }
    }
}

/// The Hopper kernel, if it fits.
fn hopper<T: Float>(
    call: &Call<'_, ExpertUpBwd<T>>,
    dims: &ExpertDims,
    params: &ExpertUpBwdParams,
) -> Result<Option<Path>, CudaError> {
    let ExpertUpBwdParams { dz, offsets, w13, weights, index, out_index, dx: out, .. } = *params;
    if !hopper::rows_fit::<T>(call.cuda, dims, &[dz, w13, out]) {
        return Ok(None);
    }
    let rows = Rows::new(dims, offsets, dims.up_width(), dims.width, 256).packed::<T>(dz)?;
    // dz lies in order; the index names the rows' weights.
    let rows = Rows { index, ..rows }.across::<T>(w13)?;
    let params = StoreParams { rows, bias: 0, weights, out_index, out, bias_share: 1.0 };
    call.launch(kernel!(T, "expert_up_bwd_hopper"), hopper::grid(call.cuda), &params)?;
    Ok(Some(HOPPER))
}

fn general<T: Float>(
    call: &Call<'_, ExpertUpBwd<T>>,
    dims: &ExpertDims,
    params: &ExpertUpBwdParams,
) -> Result<Path, CudaError> {
    let blocks = grid(call.cuda, row_tiles(dims).saturating_mul(tiles(dims.width)));
    call.launch(kernel!(T, "expert_up_bwd"), blocks, params)?;
    Ok(path::<T>(call.cuda))
}
