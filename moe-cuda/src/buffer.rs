//! Memory on the GPU: streams use it one after the other, and it is freed behind their work.

use crate::driver::{Context, check};
use crate::error::CudaError;
use crate::order::{Uses, Work, locked};
use crate::stream::Stream;
use cudarc::driver::sys::{
    self, CUdevice, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationType, CUmemLocation,
    CUmemLocationType, CUmemPool_attribute, CUmemPoolProps, CUmemoryPool, CUresult, CUstream,
};
use moe_core::{Elem, OpId};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of GPU memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// that buffers have now
    pub now: u64,
    /// that they had at most since the device was opened
    pub most: u64,
}

/// Memory from which buffers come. Kept until the device is closed, so that a freed buffer's memory is quickly had again.
pub(crate) struct Pool {
    context: Arc<Context>,
    raw: CUmemoryPool,
}

// SAFETY: the driver takes calls for a pool from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.bind()?;
        // SAFETY: a struct of integers and pointers, for which zeros are valid.
        let mut props: CUmemPoolProps = unsafe { std::mem::zeroed() };
        props.allocType = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        props.location.type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        props.location.id = context.device();
        let (mut raw, mut keep) = (null_mut(), u64::MAX);
        let key = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: a context is current, the pointers are valid, the attribute is a 64-bit number.
        unsafe {
            check("cuMemPoolCreate", sys::cuMemPoolCreate(&mut raw, &props))?;
            check("cuMemPoolSetAttribute", sys::cuMemPoolSetAttribute(raw, key, (&raw mut keep).cast()))?;
        }
        Ok(Self { context: context.clone(), raw })
    }

    /// Lets `devices`, which can, read and write its memory.
    pub(crate) fn open_to(&self, devices: &[CUdevice]) -> Result<(), CudaError> {
        self.context.bind()?;
        let access = |&device: &CUdevice| CUmemAccessDesc {
            location: CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device },
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let map: Vec<_> = devices.iter().map(access).collect();
        if map.is_empty() {
            return Ok(());
        }
        // SAFETY: the pool lives as long as `self`, the pointer is valid for as many as are said to be there.
        check("cuMemPoolSetAccess", unsafe { sys::cuMemPoolSetAccess(self.raw, map.as_ptr(), map.len()) })
    }

    pub(crate) fn memory(&self) -> Result<Memory, CudaError> {
        use CUmemPool_attribute::{CU_MEMPOOL_ATTR_USED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_HIGH};
        self.context.bind()?;
        let bytes = |key| {
            let mut bytes = 0_u64;
            // SAFETY: the pool lives as long as `self`, the attribute is a 64-bit number, the pointer is valid.
            let code = unsafe { sys::cuMemPoolGetAttribute(self.raw, key, (&raw mut bytes).cast()) };
            check("cuMemPoolGetAttribute", code).map(|()| bytes)
        };
        let (now, most) = (bytes(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?, bytes(CU_MEMPOOL_ATTR_USED_MEM_HIGH)?);
        Ok(Memory { now, most })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Memory of zeros, allocated and written in order on `stream`; `None` if there is none left.
    pub(crate) fn zeroed(&self, stream: CUstream, bytes: usize) -> Result<Option<u64>, CudaError> {
        let mut pointer = 0;
        self.context.bind()?;
        // SAFETY: a context is current, the pointer is valid.
        let code = unsafe { sys::cuMemAllocFromPoolAsync(&mut pointer, bytes, self.raw, stream) };
        if matches!(code, CUresult::CUDA_ERROR_OUT_OF_MEMORY | CUresult::CUDA_ERROR_INVALID_VALUE) {
            return Ok(None);
        }
        check("cuMemAllocFromPoolAsync", code)?;
        // SAFETY: `bytes` were allocated at `pointer`, in order before this.
        let code = unsafe { sys::cuMemsetD8Async(pointer, 0, bytes, stream) };
        match check("cuMemsetD8Async", code) {
            Ok(()) => Ok(Some(pointer)),
            Err(error) => {
                self.free(stream, pointer);
                Err(error)
            }
        }
    }

    /// Takes memory of this pool back, behind the work that is on `stream`. A failure leaves nothing to do.
    pub(crate) fn free(&self, stream: CUstream, pointer: u64) {
        // SAFETY: the caller gives up memory that was allocated from the pool.
        let _ = self.context.bind().map(|()| unsafe { sys::cuMemFreeAsync(pointer, stream) });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: blocks and streams hold the pool, so all are freed. A failure leaves nothing to do.
        let _ = self.context.bind().map(|()| unsafe { sys::cuMemPoolDestroy(self.raw) });
    }
}

/// Bytes on the GPU, shared by a buffer and the graphs that use it.
pub(crate) struct Block {
    pointer: u64,
    /// on which it is freed
    home: Mutex<Stream>,
    uses: Uses,
    pool: Arc<Pool>,
}

impl Block {
    /// Notes what `work` does with the block; false if another stream may still be using it.
    #[must_use]
    pub(crate) fn used(&self, work: &Work<'_>, written: bool) -> bool {
        if written { self.uses.write(work) } else { self.uses.read(work) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let home = self.home.get_mut().unwrap_or_else(PoisonError::into_inner).clone();
        // Freed behind every stream's work on it. A failure leaves nothing to do but to leak it.
        let ordered = self.uses.others(&home).iter().try_for_each(|other| home.follow(other));
        if ordered.is_ok() {
            home.0.free(self.pointer);
        }
    }
}

/// Elements on the GPU. Streams use it one after the other: work on another stream than the last is refused unless an event orders
/// them ([`hand_over`](moe_core::Device::hand_over), [`wait`](moe_core::Device::wait)), or the host has waited for the last; reading
/// alone needs no order.
pub struct Buffer<T> {
    pub(crate) block: Arc<Block>,
    pub(crate) len: usize,
    elements: PhantomData<T>,
}

impl<T: Elem> Buffer<T> {
    pub(crate) fn zeroed(pool: &Arc<Pool>, stream: &Stream, len: usize) -> Result<Self, CudaError> {
        if !pool.context.is(&stream.0.context) {
            return Err(CudaError::OtherDevice { op: OpId("alloc"), what: "stream" });
        }
        let work = stream.work_outside_capture("an allocation")?;
        let full = || CudaError::Memory { len, dtype: T::DTYPE };
        // An empty buffer has an address too: null stands for an argument that is absent.
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(full)?.max(16);
        let pointer = pool.zeroed(stream.0.raw, bytes)?.ok_or_else(full)?;
        let block =
            Block { pointer, home: Mutex::new(stream.clone()), uses: Uses::default(), pool: pool.clone() };
        let fresh = block.used(&work, true);
        debug_assert!(fresh, "nobody else knows the block");
        Ok(Self { block: Arc::new(block), len, elements: PhantomData })
    }

    /// Notes what `work`, of op `op`, does with the buffer, its argument `what`.
    pub(crate) fn used(
        &self,
        work: &Work<'_>,
        op: OpId,
        what: &'static str,
        written: bool,
    ) -> Result<(), CudaError> {
        if !self.block.pool.context.is(&work.stream.0.context) {
            return Err(CudaError::OtherDevice { op, what });
        }
        if !self.block.used(work, written) {
            return Err(CudaError::Stream { op, what });
        }
        work.stream.keeps(&self.block, written);
        Ok(())
    }

    /// Address of element `start`.
    pub(crate) fn address(&self, start: usize) -> u64 {
        self.block.pointer + (start * size_of::<T>()) as u64
    }

    /// Its memory is freed on `stream` from now on.
    pub(crate) fn give_to(&mut self, stream: &Stream) {
        *locked(&self.block.home) = stream.clone();
    }
}

impl<T: Elem> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("dtype", &T::DTYPE).finish()
    }
}
