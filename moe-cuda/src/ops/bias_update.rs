//! BiasUpdate: one block.

use super::Float;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims};
use moe_core::{Kernel, Out, Path};

pub(super) static IMAGE: Image = image!("bias_update", [], single: ["bias_update": 0]);

const THREADS: u32 = 256;

/// `BiasUpdateParams` of `kernels/bias_update.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct BiasUpdateParams {
    counts: Address,
    rate: Address,
    bias: Address,
    experts: u64,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for BiasUpdateParams {}

impl<T: Float> Kernel<BiasUpdate<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &BiasUpdateDims,
        args: BiasUpdateArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<BiasUpdate<T>>::new(self, stream, dims, &args)?;
        let params = BiasUpdateParams {
            counts: call.read("counts", args.counts)?,
            rate: call.read("rate", args.rate)?,
            bias: call.write("bias", args.bias)?,
            experts: dims.experts as u64,
        };
        call.launch("bias_update", Grid::new(1, THREADS), &params)?;
        Ok(Path("general"))
    }
}
