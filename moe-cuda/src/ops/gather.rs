//! Gather: a warp per row, 16 bytes a thread where all addresses allow it.

use super::Float;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use moe_core::ops::{Gather, GatherArgs, GatherDims};
use moe_core::{Kernel, Out, Path};

pub(super) static IMAGE: Image = image!("gather", ["gather": 0]);

const THREADS: u32 = 256;
const WARPS: usize = 8;

/// `GatherParams` of `kernels/gather.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct GatherParams {
    source: Address,
    index: Address,
    offsets: Address,
    out: Address,
    sources: u64,
    rows: u64,
    width: u64,
    pitch: u64,
    fan: u32,
    groups: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for GatherParams {}

impl<T: Float> Kernel<Gather<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &GatherDims,
        args: GatherArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<Gather<T>>::new(self, stream, dims, &args)?;
        let params = GatherParams {
            source: call.read("source", args.source)?,
            index: call.read("index", args.index)?,
            offsets: call.read("offsets", args.offsets)?,
            out: call.write("out", args.out)?,
            sources: dims.sources as u64,
            rows: dims.rows as u64,
            width: dims.width as u64,
            pitch: dims.pitch as u64,
            fan: dims.fan as u32,
            groups: dims.groups as u32,
        };
        let blocks = if dims.groups == 0 { 0 } else { dims.rows.div_ceil(WARPS) };
        call.launch(kernel!(T, "gather"), Grid::new(blocks, THREADS), &params)?;
        Ok(Path("general"))
    }
}
