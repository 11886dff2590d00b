//! BiasUpdate: one group.

use super::{Float, threads};
use crate::call::{Call, Grid, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{NO_STORAGE, Source, source};
use crate::stream::Stream;
use moe_core::ops::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims};
use moe_core::{DType, Kernel, Out, Path};

pub(super) static SOURCE: Source = source!("bias_update", ["scan"], NO_STORAGE);

/// `BiasUpdateParams` of `kernels/bias_update.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct BiasUpdateParams {
    experts: u64,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for BiasUpdateParams {}

impl<T: Float> Kernel<BiasUpdate<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &BiasUpdateDims,
        args: BiasUpdateArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let call = Call::<BiasUpdate<T>>::new(self, stream, (&SOURCE, DType::U32), dims, &args)?;
        let (counts, rate) = (call.read("counts", args.counts)?, call.read("rate", args.rate)?);
        let places = [counts, rate, call.write("bias", args.bias)?];
        let params = BiasUpdateParams { experts: dims.experts as u64 };
        call.launch("bias_update", Grid::new(1, threads(self.facts())), &places, &params)?;
        Ok(Path("general"))
    }
}
