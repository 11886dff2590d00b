//! PackWeights: a copy. The products of this backend read weights as they are, so nothing of the layer asks for it.

use super::Float;
use crate::call::Call;
use crate::device::Cuda;
use crate::driver::check;
use crate::error::CudaError;
use crate::stream::Stream;
use cudarc::driver::sys;
use moe_core::ops::{PackDims, PackWeights, PackWeightsArgs};
use moe_core::{Kernel, Op, Out, Path, expect};

impl<T: Float> Kernel<PackWeights<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &PackDims,
        args: PackWeightsArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<PackWeights<T>>::new(self, stream, dims, &args)?;
        let bytes = args.plain.len() * size_of::<T>();
        expect(PackWeights::<T>::ID, "packed", &[bytes], args.packed.len())?;
        let (from, to) = (call.read("plain", args.plain)?, call.write("packed", args.packed)?);
        if bytes > 0 {
            // SAFETY: both ranges lie inside their buffers and have as many bytes.
            check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream.0.raw) })?;
        }
        Ok(Path("copy"))
    }
}
