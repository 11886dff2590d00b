//! Decode: its five parts. A launch costs little here, so nothing is gained by computing them together.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::Float;
use moe_core::ops::{Decode, DecodeArgs, DecodeDims, apart, apart_scratch};
use moe_core::{Out, Path};

impl<T: Float> Launch<Decode<T>> for Cpu {
    fn scratch(&self, dims: &DecodeDims) -> usize {
        apart_scratch::<T, Self>(self, dims)
    }

    fn launch(
        &self,
        stream: &(),
        dims: &DecodeDims,
        args: DecodeArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<Decode<T>>(self, dims, &args, scratch.len())?;
        apart(self, stream, dims, args, scratch)
    }
}
