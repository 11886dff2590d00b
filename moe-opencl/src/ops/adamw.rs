//! AdamW: a work item per element.

use super::{Float, threads};
use crate::call::{Call, Grid, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{FLOATS, Source, source};
use crate::stream::Stream;
use moe_core::ops::{AdamW, AdamWArgs, AdamWDims};
use moe_core::{Kernel, Out, Path};

pub(super) static SOURCE: Source = source!("adamw", [], FLOATS);

/// `AdamWParams` of `kernels/adamw.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct AdamWParams {
    len: u64,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for AdamWParams {}

impl<T: Float> Kernel<AdamW<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &AdamWDims,
        args: AdamWArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let call = Call::<AdamW<T>>::new(self, stream, (&SOURCE, T::DTYPE), dims, &args)?;
        let places = [
            call.read("settings", args.settings)?,
            call.read("grad", args.grad)?,
            call.write("w", args.w)?,
            call.write_some("master", args.master)?,
            call.write("m", args.m)?,
            call.write("v", args.v)?,
        ];
        let threads = threads(self.facts());
        let grid = Grid::new(dims.len.div_ceil(threads), threads);
        call.launch("adamw", grid, &places, &AdamWParams { len: dims.len as u64 })?;
        Ok(Path("general"))
    }
}
