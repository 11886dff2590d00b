//! ExpertDownBwd: the product with w2 and the activation's backward in one kernel; ds, if it is wanted, from the parts of rows that
//! this leaves in scratch memory.

use super::Float;
use super::products::{Formula, Sizes, grid, row_tiles};
use super::threads;
use crate::call::{Call, Grid, Params, Place};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{Source, product};
use crate::stream::Stream;
use moe_core::ops::{ExpertDims, ExpertDownBwd, ExpertDownBwdArgs};
use moe_core::{Kernel, Op, Out, Path};

pub(super) static SOURCE: Source = product!("expert_down_bwd", ["tiles", "activation"]);

/// `ExpertDownBwdParams` of `kernels/expert_down_bwd.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExpertDownBwdParams {
    sizes: Sizes,
    formula: Formula,
    shares: f32,
    scores_first: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ExpertDownBwdParams {}

impl<T: Float> Kernel<ExpertDownBwd<T>> for OpenCl {
    fn scratch(&self, dims: &ExpertDims) -> usize {
        let parts = dims.hidden.div_ceil(self.way::<T>(false).part());
        dims.rows.saturating_mul(parts).saturating_mul(size_of::<f32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &ExpertDims,
        args: ExpertDownBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let (op, way) = (ExpertDownBwd::<T>::ID, self.way::<T>(false));
        let call =
            Call::<ExpertDownBwd<T>>::on_way(self, stream, (&SOURCE, T::DTYPE), Some(way), dims, &args)?;
        let (dout, index) = (call.read("dout", args.dout)?, call.read_some("index", args.index)?);
        let (offsets, w2) = (call.read("offsets", args.offsets)?, call.weight("w2", args.w2)?);
        let (b2, b13) = (call.read_some("b2", args.b2)?, call.read_some("b13", args.b13)?);
        let weights = call.read_some("weights", args.weights)?;
        let (h, a) = (call.write("h", args.h)?, call.write("a", args.a)?);
        let ds = args.ds.map(|ds| call.write("ds", ds)).transpose()?;
        let parts = match ds {
            Some(_) => call.scratch(scratch, Kernel::<ExpertDownBwd<T>>::scratch(self, dims))?.of::<f32>(),
            None => Place::NONE,
        };
        let params = ExpertDownBwdParams {
            sizes: Sizes::of(op, dims)?,
            formula: Formula::of(op, dims.activation)?,
            shares: dims.bias_shares as f32,
            scores_first: args.scores_first.into(),
        };
        let tiles = row_tiles(way, dims).saturating_mul(dims.hidden.div_ceil(way.tile_columns()));
        let places = [dout, index, offsets, w2, b13, weights, h, a, parts];
        call.launch("expert_down_bwd", grid(self.facts(), way, tiles), &places, &params)?;
        if let Some(ds) = ds {
            let items = threads(self.facts());
            let places = [dout, index, offsets, b2, parts, ds];
            call.launch(
                "expert_down_bwd_scores",
                Grid::new(dims.rows.div_ceil(items), items),
                &places,
                &params,
            )?;
        }
        Ok(way.path())
    }
}
