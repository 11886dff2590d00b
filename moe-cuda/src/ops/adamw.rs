//! AdamW: four elements a thread.

use super::Float;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use moe_core::ops::{AdamW, AdamWArgs, AdamWDims};
use moe_core::{Kernel, Out, Path};

pub(super) static IMAGE: Image = image!("adamw", ["adamw": 0]);

const THREADS: u32 = 256;
/// Elements of a block.
const BLOCK: usize = 1024;

/// `AdamWParams` of `kernels/adamw.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct AdamWParams {
    settings: Address,
    grad: Address,
    w: Address,
    master: Address,
    m: Address,
    v: Address,
    len: u64,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for AdamWParams {}

impl<T: Float> Kernel<AdamW<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &AdamWDims,
        args: AdamWArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<AdamW<T>>::new(self, stream, dims, &args)?;
        let params = AdamWParams {
            settings: call.read("settings", args.settings)?,
            grad: call.read("grad", args.grad)?,
            w: call.write("w", args.w)?,
            master: call.write_some("master", args.master)?,
            m: call.write("m", args.m)?,
            v: call.write("v", args.v)?,
            len: dims.len as u64,
        };
        call.launch(kernel!(T, "adamw"), Grid::new(dims.len.div_ceil(BLOCK), THREADS), &params)?;
        Ok(Path("general"))
    }
}
