//! PackWeights: panels of columns, the depth of a panel in one stream. See [`gemm`](crate::gemm).

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Crew, Float, pack_all};
use moe_core::ops::{PackDims, PackWeights, PackWeightsArgs};
use moe_core::{Device, Op, Out, Path};

impl<T: Float> Launch<PackWeights<T>> for Cpu {
    fn launch(
        &self,
        (): &(),
        dims: &PackDims,
        args: PackWeightsArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<PackWeights<T>>(self, dims, &args, scratch.len())?;
        let (plain, packed) = (args.plain.host(), args.packed.host());
        self.enter(|| pack_all(&Crew::of(self), PackWeights::<T>::ID, dims, plain, packed))?;
        Ok(Path("panels"))
    }
}
