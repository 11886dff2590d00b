//! ExpertWgrad: a tile of an expert's gradient per block, over all the expert's rows; the bias's in a kernel of its own.

use super::Float;
use super::hopper::{self, HOPPER, SHARED_WGRAD};
use super::products::{GENERAL, SHARED, THREADS, count, grid, path, tiles};
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use crate::tensor_map::TensorMap;
use moe_core::ops::{ExpertWgrad, ExpertWgradArgs, WgradDims};
use moe_core::{Kernel, Op, Out, Path, within};

pub(super) static IMAGE: Image = image!(
    "expert_wgrad",
    ["expert_wgrad": SHARED, "expert_wgrad_weighted": SHARED, "expert_wgrad_bias": 0]
);

/// `ExpertWgradParams` of `kernels/expert_wgrad.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertWgradParams {
    left: Address,
    right: Address,
    index: Address,
    offsets: Address,
    right_weights: Address,
    bias_weights: Address,
    dw: Address,
    dbias: Address,
    tokens: u32,
    fan: u32,
    slots: u32,
    rows: u32,
    experts: u32,
    left_width: u32,
    right_width: u32,
    gather_left: u32,
    gather_right: u32,
    accumulate: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertWgradParams {}

impl<T: Float> Kernel<ExpertWgrad<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &WgradDims,
        args: ExpertWgradArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let op = ExpertWgrad::<T>::ID;
        within(op, "left", 0, i32::MAX as usize, dims.left)?;
        within(op, "right", 0, i32::MAX as usize, dims.right)?;
        let call = Call::<ExpertWgrad<T>>::new(self, stream, dims, &args)?;
        let params = ExpertWgradParams {
            left: call.read("left", args.left)?,
            right: call.read("right", args.right)?,
            index: call.read_some("index", args.index)?,
            offsets: call.read("offsets", args.offsets)?,
            right_weights: call.read_some("right_weights", args.right_weights)?,
            bias_weights: call.read_some("bias_weights", args.bias_weights)?,
            dw: call.write("dw", args.dw)?,
            dbias: call.write_some("dbias", args.dbias)?,
            tokens: count(dims.tokens),
            fan: dims.fan as u32,
            slots: count(dims.tokens.saturating_mul(dims.fan)),
            rows: dims.rows as u32,
            experts: dims.experts as u32,
            left_width: dims.left as u32,
            right_width: dims.right as u32,
            gather_left: dims.gather_left.into(),
            gather_right: dims.gather_right.into(),
            accumulate: dims.accumulate.into(),
        };
        if params.dbias != 0 {
            let columns = dims.left.div_ceil(THREADS as usize);
            let blocks = Grid::of([columns, dims.experts.min(MOST_ACROSS), 1], THREADS);
            call.launch(kernel!(T, "expert_wgrad_bias"), blocks, &params)?;
        }
        match hopper(&call, dims, &params)? {
            Some(path) => Ok(path),
            None => general(&call, dims, &params),
        }
    }
}

/// Most blocks along a grid's second axis.
const MOST_ACROSS: usize = 65535;

/// `WgradParams` of `kernels/expert_wgrad_hopper.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct WgradParams {
    pub(super) packed: TensorMap,
    pub(super) gradient: TensorMap,
    pub(super) source: Address,
    pub(super) index: Address,
    pub(super) offsets: Address,
    pub(super) dw: Address,
    pub(super) tokens: u32,
    pub(super) fan: u32,
    pub(super) rows: u32,
    pub(super) experts: u32,
    pub(super) height: u32,
    pub(super) columns: u32,
    pub(super) turned: u32,
    pub(super) accumulate: u32,
    pub(super) repeat: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for WgradParams {}

/// The Hopper kernel, if it fits. It gathers one operand, and takes the other's rows in order.
fn hopper<T: Float>(
    call: &Call<'_, ExpertWgrad<T>>,
    dims: &WgradDims,
    params: &ExpertWgradParams,
) -> Result<Option<Path>, CudaError> {
    let ExpertWgradParams { left, right, index, offsets, dw, rows, experts, accumulate, .. } = *params;
    let fits = hopper::fits::<T>(call.cuda, dims.experts, [dims.left, dims.right], &[left, right, dw]);
    let both = dims.gather_left && dims.gather_right;
    let lines = if dims.gather_left || dims.gather_right { dims.tokens } else { dims.rows };
    let counted = hopper::gathers(lines, dims.left.max(dims.right)) && dims.rows <= i32::MAX as usize;
    if !fits || !counted || both || params.right_weights != 0 || dims.rows == 0 || dims.tokens == 0 {
        return Ok(None);
    }
    let turned = dims.gather_right;
    let (source, height, packed, columns) =
        if turned { (right, dims.right, left, dims.left) } else { (left, dims.left, right, dims.right) };
    let gathers = dims.gather_left || dims.gather_right;
    let params = WgradParams {
        packed: TensorMap::new::<T, 2>(packed, [columns, dims.rows], [64, 64])?,
        gradient: TensorMap::new::<f32, 3>(
            dw,
            [dims.right, dims.left, dims.experts],
            [32, if turned { 32 } else { 64 }, 1],
        )?,
        source,
        index: if gathers { index } else { 0 },
        offsets,
        dw,
        tokens: if gathers { params.tokens } else { rows },
        fan: if gathers { params.fan } else { 1 },
        rows,
        experts,
        height: height as u32,
        columns: columns as u32,
        turned: turned.into(),
        accumulate,
        repeat: 1,
    };
    call.launch(kernel!(T, "expert_wgrad_hopper"), hopper::grid(call.cuda).shared(SHARED_WGRAD), &params)?;
    Ok(Some(HOPPER))
}

fn general<T: Float>(
    call: &Call<'_, ExpertWgrad<T>>,
    dims: &WgradDims,
    params: &ExpertWgradParams,
) -> Result<Path, CudaError> {
    let per_expert = tiles(dims.left).saturating_mul(tiles(dims.right));
    let blocks = grid(call.cuda, per_expert.saturating_mul(dims.experts));
    if params.right_weights != 0 {
        call.launch(kernel!(T, "expert_wgrad_weighted"), blocks, params)?;
        return Ok(GENERAL);
    }
    call.launch(kernel!(T, "expert_wgrad"), blocks, params)?;
    Ok(path::<T>(call.cuda))
}
