//! BiasUpdate: a few hundred integers; the reference is fast enough, and its own definition.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::Float;
use moe_core::ops::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims};
use moe_core::{Op, Out, Path};

impl<T: Float> Launch<BiasUpdate<T>> for Cpu {
    fn launch(
        &self,
        (): &(),
        dims: &BiasUpdateDims,
        args: BiasUpdateArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<BiasUpdate<T>>(self, dims, &args, scratch.len())?;
        let BiasUpdateArgs { counts, rate, bias } = args;
        BiasUpdate::<T>::reference(dims, BiasUpdateArgs { counts, rate, bias })?;
        Ok(Path("reference"))
    }
}
