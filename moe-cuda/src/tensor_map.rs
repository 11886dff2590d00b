//! Tensor maps: how the copy engine of Hopper and later finds boxes of a tensor.

use crate::driver::check;
use crate::error::CudaError;
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use moe_core::{DType, Elem};

/// `TensorMap` of `kernels/hopper.cuh`: a tensor, copied in boxes with lines of 128 bytes.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
pub(crate) struct TensorMap(CUtensorMap);

impl TensorMap {
    /// Stands for a map that the kernel does not use.
    pub(crate) const NONE: Self = Self(CUtensorMap { opaque: [0; 16] });

    /// A map of elements `T` at `address`, sizes and box innermost first. Beyond the tensor there are zeros. The address and the
    /// innermost size in bytes are multiples of 16.
    pub(crate) fn new<T: Elem, const N: usize>(
        address: u64,
        sizes: [usize; N],
        part: [u32; N],
    ) -> Result<Self, CudaError> {
        let kind = match T::DTYPE {
            DType::Bf16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F32 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let sizes = sizes.map(|size| size as u64);
        let mut strides = [size_of::<T>() as u64; N];
        for at in 0..N {
            strides[at] =
                sizes[at].saturating_mul(if at == 0 { size_of::<T>() as u64 } else { strides[at - 1] });
        }
        let mut map = Self::NONE;
        // SAFETY: the arrays have `N` entries (the last stride is not read); the address is only stored. The driver refuses what
        // does not fit.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                kind,
                N as u32,
                address as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                part.as_ptr(),
                [1; N].as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check("cuTensorMapEncodeTiled", code)?;
        Ok(map)
    }
}
