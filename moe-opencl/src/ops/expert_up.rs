//! ExpertUp: the product with both halves of w13 and the activation, in one kernel.

use super::Float;
use super::products::{Formula, Sizes, grid, row_tiles};
use crate::call::{Call, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{Source, product};
use crate::stream::Stream;
use moe_core::ops::{ExpertDims, ExpertUp, ExpertUpArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static SOURCE: Source = product!("expert_up", ["tiles", "activation"]);

/// `ExpertUpParams` of `kernels/expert_up.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertUpParams {
    sizes: Sizes,
    formula: Formula,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertUpParams {}

impl<T: Float> Kernel<ExpertUp<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertUpArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let (op, way) = (ExpertUp::<T>::ID, self.way::<T>(false));
        let call = Call::<ExpertUp<T>>::on_way(self, stream, (&SOURCE, T::DTYPE), Some(way), dims, &args)?;
        let places = [
            call.read("x", args.x)?,
            call.read_some("index", args.index)?,
            call.read("offsets", args.offsets)?,
            call.weight("w13", args.w13)?,
            call.read_some("b13", args.b13)?,
            call.read_some("weights", args.weights)?,
            call.write_some("h", args.h)?,
            call.write("a", args.a)?,
        ];
        let params =
            ExpertUpParams { sizes: Sizes::of(op, dims)?, formula: Formula::of(op, dims.activation)? };
        // A gated tile has two halves of the same columns.
        let span = way.tile_columns() / if dims.activation.gated() { 2 } else { 1 };
        let tiles = row_tiles(way, dims).saturating_mul(dims.hidden.div_ceil(span));
        call.launch("expert_up", grid(self.facts(), way, tiles), &places, &params)?;
        Ok(way.path())
    }
}
