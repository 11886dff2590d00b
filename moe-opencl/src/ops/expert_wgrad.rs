//! ExpertWgrad: a tile of an expert's gradient per group, over all the expert's rows; the bias's in a kernel of its own.

use super::Float;
use super::products::{count, grid};
use super::threads;
use crate::call::{Call, Grid, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{Source, product};
use crate::stream::Stream;
use moe_core::ops::{ExpertWgrad, ExpertWgradArgs, WgradDims};
use moe_core::{Kernel, Op, Out, Path, within};

pub(super) static SOURCE: Source = product!("expert_wgrad", ["tiles"]);

/// `ExpertWgradParams` of `kernels/expert_wgrad.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertWgradParams {
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

impl<T: Float> Kernel<ExpertWgrad<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &WgradDims,
        args: ExpertWgradArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let (op, way) = (ExpertWgrad::<T>::ID, self.way::<T>(args.right_weights.is_some()));
        within(op, "left", 0, i32::MAX as usize, dims.left)?;
        within(op, "right", 0, i32::MAX as usize, dims.right)?;
        let call = Call::<ExpertWgrad<T>>::on_way(self, stream, (&SOURCE, T::DTYPE), Some(way), dims, &args)?;
        let (left, right) = (call.read("left", args.left)?, call.read("right", args.right)?);
        let (index, offsets) = (call.read_some("index", args.index)?, call.read("offsets", args.offsets)?);
        let right_weights = call.read_some("right_weights", args.right_weights)?;
        let bias_weights = call.read_some("bias_weights", args.bias_weights)?;
        let dw = call.write("dw", args.dw)?;
        let dbias = args.dbias.map(|dbias| call.write("dbias", dbias)).transpose()?;
        let params = ExpertWgradParams {
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
        if let Some(dbias) = dbias {
            let items = threads(self.facts());
            let groups = Grid::of([dims.left.div_ceil(items), dims.experts], [items, 1]);
            call.launch("expert_wgrad_bias", groups, &[left, index, offsets, bias_weights, dbias], &params)?;
        }
        let tiles =
            dims.left.div_ceil(way.tile_rows()).saturating_mul(dims.right.div_ceil(way.tile_columns()));
        let groups = grid(self.facts(), way, tiles.saturating_mul(dims.experts));
        call.launch("expert_wgrad", groups, &[left, right, index, offsets, right_weights, dw], &params)?;
        Ok(way.path())
    }
}
