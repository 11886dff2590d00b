//! ExpertDown: the product with w2, rows written to their places.

use super::Float;
use super::hopper::{self, HOPPER, Rows, StoreParams};
use super::products::{DECODE, LINES, SHARED, Sizes, decode_grid, few, grid, path, row_tiles, tiles};
use crate::call::{Address, Call, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use moe_core::ops::{ExpertDims, ExpertDown, ExpertDownArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static IMAGE: Image = image!("expert_down", ["expert_down": SHARED, "expert_down_decode": 0]);

/// `ExpertDownParams` of `kernels/expert_down.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertDownParams {
    a: Address,
    offsets: Address,
    w2: Address,
    b2: Address,
    out_index: Address,
    y: Address,
    sizes: Sizes,
    shares: f32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertDownParams {}

impl<T: Float> Kernel<ExpertDown<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertDownArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<ExpertDown<T>>::new(self, stream, dims, &args)?;
        let params = ExpertDownParams {
            a: call.read("a", args.a)?,
            offsets: call.read("offsets", args.offsets)?,
            w2: call.weight("w2", args.w2)?,
            b2: call.read_some("b2", args.b2)?,
            out_index: call.read_some("out_index", args.out_index)?,
            y: call.write("y", args.y)?,
            sizes: Sizes::of(ExpertDown::<T>::ID, dims)?,
            shares: dims.bias_shares as f32,
        };
        if let Some(path) = decode(&call, dims, &params)? {
            return Ok(path);
        }
        match hopper(&call, dims, &params)? {
            Some(path) => Ok(path),
            None => general(&call, dims, &params),
        }
    }
}

/// The Hopper kernel, if it fits.
fn hopper<T: Float>(
    call: &Call<'_, ExpertDown<T>>,
    dims: &ExpertDims,
    params: &ExpertDownParams,
) -> Result<Option<Path>, CudaError> {
    let ExpertDownParams { a, offsets, w2, b2: bias, out_index, y: out, shares, .. } = *params;
    if !hopper::rows_fit::<T>(call.cuda, dims, &[a, w2, bias, out]) {
        return Ok(None);
    }
    let rows =
        Rows::new(dims, offsets, dims.hidden, dims.width, 256).packed::<T>(a)?.along::<T>(w2, 256, 1)?;
    let params = StoreParams { rows, bias, weights: 0, out_index, out, bias_share: shares.recip() };
    call.launch(kernel!(T, "expert_down_hopper"), hopper::grid(call.cuda), &params)?;
    Ok(Some(HOPPER))
}

/// The kernel for few rows, if it fits.
fn decode<T: Float>(
    call: &Call<'_, ExpertDown<T>>,
    dims: &ExpertDims,
    params: &ExpertDownParams,
) -> Result<Option<Path>, CudaError> {
    if !few::<T>(call.cuda, dims, [params.a, params.w2], dims.rows.max(dims.width), dims.hidden) {
        return Ok(None);
    }
    let blocks = decode_grid(call.cuda, dims, dims.width.div_ceil(LINES));
    call.launch(kernel!(T, "expert_down_decode"), blocks, params)?;
    Ok(Some(DECODE))
}

fn general<T: Float>(
    call: &Call<'_, ExpertDown<T>>,
    dims: &ExpertDims,
    params: &ExpertDownParams,
) -> Result<Path, CudaError> {
    let blocks = grid(call.cuda, row_tiles(dims).saturating_mul(tiles(dims.width)));
    call.launch(kernel!(T, "expert_down"), blocks, params)?;
    Ok(path::<T>(call.cuda))
}
