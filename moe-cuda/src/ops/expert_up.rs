//! ExpertUp: the product with both halves of w13 and the activation, in one kernel.

use super::Float;
use super::hopper::{self, HOPPER, Rows};
use super::products::{DECODE, Formula, LINES, SHARED, Sizes, TILE, decode_grid, few, grid, path, row_tiles};
use crate::call::{Address, Call, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use moe_core::ops::{ExpertDims, ExpertUp, ExpertUpArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static IMAGE: Image = image!("expert_up", ["expert_up": SHARED, "expert_up_decode": 0]);

/// `ExpertUpParams` of `kernels/expert_up.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertUpParams {
    x: Address,
    index: Address,
    offsets: Address,
    w13: Address,
    b13: Address,
    weights: Address,
    h: Address,
    a: Address,
    sizes: Sizes,
    formula: Formula,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertUpParams {}

impl<T: Float> Kernel<ExpertUp<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertUpArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<ExpertUp<T>>::new(self, stream, dims, &args)?;
        let params = ExpertUpParams {
            x: call.read("x", args.x)?,
            index: call.read_some("index", args.index)?,
            offsets: call.read("offsets", args.offsets)?,
            w13: call.weight("w13", args.w13)?,
            b13: call.read_some("b13", args.b13)?,
            weights: call.read_some("weights", args.weights)?,
            h: call.write_some("h", args.h)?,
            a: call.write("a", args.a)?,
            sizes: Sizes::of(ExpertUp::<T>::ID, dims)?,
            formula: Formula::of(ExpertUp::<T>::ID, dims.activation)?,
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

/// `UpParams` of `kernels/expert_up_hopper.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UpParams {
    rows: Rows,
    bias: Address,
    h: Address,
    a: Address,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for UpParams {}

/// The Hopper kernel, if it fits.
fn hopper<T: Float>(
    call: &Call<'_, ExpertUp<T>>,
    dims: &ExpertDims,
    params: &ExpertUpParams,
) -> Result<Option<Path>, CudaError> {
    let ExpertUpParams { x, index, offsets, w13, b13: bias, weights, h, a, .. } = *params;
    if weights != 0
        || !hopper::is_swiglu(dims)
        || !hopper::rows_fit::<T>(call.cuda, dims, &[x, w13, bias, h, a])
    {
        return Ok(None);
    }
    let rows = Rows::new(dims, offsets, dims.width, dims.hidden, 128);
    let rows = rows.gathered(x, index).along::<T>(w13, 128, 2)?;
    call.launch(kernel!(T, "expert_up_hopper"), hopper::grid(call.cuda), &UpParams { rows, bias, h, a })?;
    Ok(Some(HOPPER))
}

/// The kernel for few rows, if it fits.
fn decode<T: Float>(
    call: &Call<'_, ExpertUp<T>>,
    dims: &ExpertDims,
    params: &ExpertUpParams,
) -> Result<Option<Path>, CudaError> {
    if !few::<T>(call.cuda, dims, [params.x, params.w13], dims.tokens.max(dims.up_width()), dims.width) {
        return Ok(None);
    }
    let span = if dims.activation.gated() { LINES / 2 } else { LINES };
    let blocks = decode_grid(call.cuda, dims, dims.hidden.div_ceil(span));
    call.launch(kernel!(T, "expert_up_decode"), blocks, params)?;
    Ok(Some(DECODE))
}

fn general<T: Float>(
    call: &Call<'_, ExpertUp<T>>,
    dims: &ExpertDims,
    params: &ExpertUpParams,
) -> Result<Path, CudaError> {
    // A gated tile has two halves of the same columns.
    let span = if dims.activation.gated() { TILE / 2 } else { TILE };
    let blocks = grid(call.cuda, row_tiles(dims).saturating_mul(dims.hidden.div_ceil(span)));
    call.launch(kernel!(T, "expert_up"), blocks, params)?;
    Ok(path::<T>(call.cuda))
}
