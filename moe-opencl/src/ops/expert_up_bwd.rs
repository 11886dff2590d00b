//! ExpertUpBwd: the product with w13 as it lies, in one kernel.

use super::Float;
use super::products::{Sizes, grid, row_tiles};
use crate::call::{Call, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{Source, product};
use crate::stream::Stream;
use moe_core::ops::{ExpertDims, ExpertUpBwd, ExpertUpBwdArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static SOURCE: Source = product!("expert_up_bwd", ["tiles"]);

/// `ExpertUpBwdParams` of `kernels/expert_up_bwd.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertUpBwdParams {
    sizes: Sizes,
    up: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertUpBwdParams {}

impl<T: Float> Kernel<ExpertUpBwd<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertUpBwdArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let way = self.way::<T>(false);
        let call = Call::<ExpertUpBwd<T>>::on_way(self, stream, (&SOURCE, T::DTYPE), Some(way), dims, &args)?;
        let places = [
            call.read("dz", args.dz)?,
            call.read("offsets", args.offsets)?,
            call.weight("w13", args.w13)?,
            call.read_some("weights", args.weights)?,
            call.read_some("index", args.index)?,
            call.read_some("out_index", args.out_index)?,
            call.write("dx", args.dx)?,
        ];
        let sizes = Sizes::of(ExpertUpBwd::<T>::ID, dims)?;
        let params = ExpertUpBwdParams { sizes, up: dims.up_width() as u32 };
        let tiles = row_tiles(way, dims).saturating_mul(dims.width.div_ceil(way.tile_columns()));
        call.launch("expert_up_bwd", grid(self.facts(), way, tiles), &places, &params)?;
        Ok(way.path())
    }
}
