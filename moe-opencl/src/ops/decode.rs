//! Decode: its five parts, launch by launch.

use super::Float;
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::stream::Stream;
use moe_core::ops::{Decode, DecodeArgs, DecodeDims, apart, apart_scratch};
use moe_core::{Kernel, Op, Out, Path};

impl<T: Float> Kernel<Decode<T>> for OpenCl {
    fn scratch(&self, dims: &DecodeDims) -> usize {
        apart_scratch::<T, Self>(self, dims)
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &DecodeDims,
        args: DecodeArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        Decode::<T>::check::<Self>(dims, &args)?;
        apart(self, stream, dims, args, scratch)
    }
}
