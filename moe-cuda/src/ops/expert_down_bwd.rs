//! ExpertDownBwd: the product with w2 as it lies and the activation's gradient over h, then the scores' gradients.

use super::Float;
use super::hopper::{self, HOPPER, Rows};
use super::products::{Formula, SHARED, Sizes, THREADS, grid, path, row_tiles, tiles};
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use crate::tensor_map::TensorMap;
use moe_core::ops::{ExpertDims, ExpertDownBwd, ExpertDownBwdArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static IMAGE: Image =
    image!("expert_down_bwd", ["expert_down_bwd": SHARED, "expert_down_bwd_scores": 0]);

/// `ExpertDownBwdParams` of `kernels/expert_down_bwd.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertDownBwdParams {
    dout: Address,
    index: Address,
    offsets: Address,
    w2: Address,
    b2: Address,
    b13: Address,
    weights: Address,
    h: Address,
    a: Address,
    ds: Address,
    parts: Address,
    sizes: Sizes,
    formula: Formula,
    shares: f32,
    scores_first: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertDownBwdParams {}

impl<T: Float> Kernel<ExpertDownBwd<T>> for Cuda {
    /// A part of ds for every row and tile of columns.
    fn scratch(&self, dims: &ExpertDims) -> usize {
        dims.rows.saturating_mul(tiles(dims.hidden)).saturating_mul(size_of::<f32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertDownBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<ExpertDownBwd<T>>::new(self, stream, dims, &args)?;
        let params = ExpertDownBwdParams {
            dout: call.read("dout", args.dout)?,
            index: call.read_some("index", args.index)?,
            offsets: call.read("offsets", args.offsets)?,
            w2: call.weight("w2", args.w2)?,
            b2: call.read_some("b2", args.b2)?,
            b13: call.read_some("b13", args.b13)?,
            weights: call.read_some("weights", args.weights)?,
            h: call.write("h", args.h)?,
            a: call.write("a", args.a)?,
            ds: call.write_some("ds", args.ds)?,
            parts: call.scratch(scratch, Kernel::<ExpertDownBwd<T>>::scratch(self, dims))?,
            sizes: Sizes::of(ExpertDownBwd::<T>::ID, dims)?,
            formula: Formula::of(ExpertDownBwd::<T>::ID, dims.activation)?,
            shares: dims.bias_shares as f32,
            scores_first: args.scores_first.into(),
        };
        let path = match hopper(&call, dims, &params)? {
            Some(path) => path,
            None => general(&call, dims, &params)?,
        };
        if params.ds != 0 && dims.experts > 0 {
            let rows_of_block = (THREADS / 32) as usize;
            let most = 8 * self.facts().processors as usize;
            let blocks = Grid::new(dims.rows.div_ceil(rows_of_block).min(most), THREADS);
            call.launch(kernel!(T, "expert_down_bwd_scores"), blocks, &params)?;
        }
        Ok(path)
    }
}

/// `DownBwdParams` of `kernels/expert_down_bwd_hopper.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DownBwdParams {
    rows: Rows,
    weights: Address,
    h: Address,
    a: Address,
    parts: Address,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for DownBwdParams {}

/// The Hopper kernel, if it fits.
fn hopper<T: Float>(
    call: &Call<'_, ExpertDownBwd<T>>,
    dims: &ExpertDims,
    params: &ExpertDownBwdParams,
) -> Result<Option<Path>, CudaError> {
    let ExpertDownBwdParams { dout, index, offsets, w2, weights, h, a, ds, parts, scores_first, .. } =
        *params;
    let fits = hopper::rows_fit::<T>(call.cuda, dims, &[dout, w2, h, a]);
    if scores_first != 0 || !hopper::is_swiglu(dims) || !fits {
        return Ok(None);
    }
    let mut rows =
        Rows::new(dims, offsets, dims.width, dims.hidden, 256).gathered(dout, index).across::<T>(w2)?;
    rows.more = TensorMap::new::<T, 2>(h, [dims.up_width(), dims.rows], [64, 128])?;
    let parts = if ds == 0 { 0 } else { parts };
    let params = DownBwdParams { rows, weights, h, a, parts };
    call.launch(kernel!(T, "expert_down_bwd_hopper"), hopper::grid(call.cuda), &params)?;
    Ok(Some(HOPPER))
}

fn general<T: Float>(
    call: &Call<'_, ExpertDownBwd<T>>,
    dims: &ExpertDims,
    params: &ExpertDownBwdParams,
) -> Result<Path, CudaError> {
    let blocks = grid(call.cuda, row_tiles(dims).saturating_mul(tiles(dims.hidden)));
    call.launch(kernel!(T, "expert_down_bwd"), blocks, params)?;
    Ok(path::<T>(call.cuda))
}
