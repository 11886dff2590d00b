//! ExpertDown: the product with w2 and the bias, in one kernel.

use super::Float;
use super::products::{Sizes, grid, row_tiles};
use crate::call::{Call, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{Source, product};
use crate::stream::Stream;
use moe_core::ops::{ExpertDims, ExpertDown, ExpertDownArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static SOURCE: Source = product!("expert_down", ["tiles"]);

/// `ExpertDownParams` of `kernels/expert_down.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertDownParams {
    sizes: Sizes,
    shares: f32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertDownParams {}

impl<T: Float> Kernel<ExpertDown<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertDownArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let way = self.way::<T>(false);
        let call = Call::<ExpertDown<T>>::on_way(self, stream, (&SOURCE, T::DTYPE), Some(way), dims, &args)?;
        let places = [
            call.read("a", args.a)?,
            call.read("offsets", args.offsets)?,
            call.weight("w2", args.w2)?,
            call.read_some("b2", args.b2)?,
            call.read_some("out_index", args.out_index)?,
            call.write("y", args.y)?,
        ];
        let sizes = Sizes::of(ExpertDown::<T>::ID, dims)?;
        let params = ExpertDownParams { sizes, shares: dims.bias_shares as f32 };
        let tiles = row_tiles(way, dims).saturating_mul(dims.width.div_ceil(way.tile_columns()));
        call.launch("expert_down", grid(self.facts(), way, tiles), &places, &params)?;
        Ok(way.path())
    }
}
