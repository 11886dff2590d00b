//! PackWeights: a copy. The products of this backend read weights as they are, so nothing of the layer asks for it.

use super::Float;
use crate::buffer::copy_bytes;
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::stream::Stream;
use moe_core::ops::{PackDims, PackWeights, PackWeightsArgs};
use moe_core::{Kernel, Op, Out, Path, expect};

impl<T: Float> Kernel<PackWeights<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &PackDims,
        args: PackWeightsArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let id = PackWeights::<T>::ID;
        PackWeights::<T>::check::<Self>(dims, &args)?;
        let bytes = args.plain.len() * size_of::<T>();
        expect(id, "packed", &[bytes], args.packed.len())?;
        let ((plain, from), (packed, to)) = (args.plain.parts(), args.packed.parts());
        let work = stream.work();
        plain.used(&work, id, "plain", false)?;
        packed.used(&work, id, "packed", true)?;
        copy_bytes(&work, (plain, from.start * size_of::<T>()), (packed, to.start), bytes)?;
        Ok(Path("copy"))
    }
}
