//! Gather: a work item per four columns of a row.

use super::{Float, by_row};
use crate::call::{Call, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{FLOATS, Source, source};
use crate::stream::Stream;
use moe_core::ops::{Gather, GatherArgs, GatherDims};
use moe_core::{Kernel, Out, Path};

pub(super) static SOURCE: Source = source!("gather", [], FLOATS);

/// `GatherParams` of `kernels/gather.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct GatherParams {
    sources: u64,
    rows: u64,
    width: u64,
    pitch: u64,
    fan: u32,
    groups: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for GatherParams {}

impl<T: Float> Kernel<Gather<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &GatherDims,
        args: GatherArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let call = Call::<Gather<T>>::new(self, stream, (&SOURCE, T::DTYPE), dims, &args)?;
        let (source, index) = (call.read("source", args.source)?, call.read("index", args.index)?);
        let (offsets, out) = (call.read("offsets", args.offsets)?, call.write("out", args.out)?);
        let params = GatherParams {
            sources: dims.sources as u64,
            rows: dims.rows as u64,
            width: dims.width as u64,
            pitch: dims.pitch as u64,
            fan: dims.fan as u32,
            groups: dims.groups as u32,
        };
        let rows = if dims.groups == 0 { 0 } else { dims.rows };
        let grid = by_row(self.facts(), rows, dims.width);
        call.launch("gather", grid, &[source, index, offsets, out], &params)?;
        Ok(Path("general"))
    }
}
