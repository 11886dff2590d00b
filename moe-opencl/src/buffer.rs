//! Memory on the device: bytes, which streams use one after the other.

use crate::context::Context;
use crate::error::{OpenClError, check, out_of_memory};
use crate::order::{Uses, Work};
use crate::stream::Stream;
use moe_core::{Elem, OpId};
use ocl::ffi::{self, cl_mem};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{from_ref, null, null_mut};
use std::sync::Arc;

/// Elements on the device. Streams use it one after the other: work on another stream than the last is refused unless an event
/// orders them ([`hand_over`](moe_core::Device::hand_over), [`wait`](moe_core::Device::wait)), or the host has waited for the
/// last; reading alone needs no order. Its memory is freed when the work on it is done.
pub struct Buffer<T> {
    context: Arc<Context>,
    pub(crate) raw: cl_mem,
    pub(crate) len: usize,
    uses: Uses,
    elements: PhantomData<T>,
}

// SAFETY: OpenCL takes calls for a memory object from any thread; elements are plain data.
unsafe impl<T: Elem> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Elem> Sync for Buffer<T> {}

impl<T: Elem> Buffer<T> {
    pub(crate) fn zeroed(context: &Arc<Context>, stream: &Stream, len: usize) -> Result<Self, OpenClError> {
        if !context.is(&stream.0.context) {
            return Err(OpenClError::OtherDevice { op: OpId("alloc"), what: "stream" });
        }
        let full = || OpenClError::Memory { len, dtype: T::DTYPE };
        // OpenCL has no empty buffers. Four bytes at a time are filled faster than one.
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(4));
        let bytes = bytes.ok_or_else(full)?.max(16);
        if bytes as u64 > context.listed.facts.largest {
            return Err(full());
        }
        let (mut code, zero) = (0, 0_u32);
        // SAFETY: the context lives, no host memory is lent, the pointer is valid.
        let raw =
            unsafe { ffi::clCreateBuffer(context.raw, ffi::CL_MEM_READ_WRITE, bytes, null_mut(), &mut code) };
        if out_of_memory(code) || code == ffi::CL_INVALID_BUFFER_SIZE {
            return Err(full());
        }
        check("clCreateBuffer", code)?;
        let context = context.clone();
        let buffer = Self { context, raw, len, uses: Uses::default(), elements: PhantomData };
        let work = stream.work();
        buffer.used(&work, OpId("alloc"), "buffer", true)?;
        // SAFETY: the buffer has as many bytes; the pattern is read before the call returns.
        let code = unsafe {
            let pattern = from_ref(&zero).cast();
            ffi::clEnqueueFillBuffer(stream.0.raw, raw, pattern, 4, 0, bytes, 0, null(), null_mut())
        };
        // Memory may be sought only when it is first used.
        if out_of_memory(code) { Err(full()) } else { check("clEnqueueFillBuffer", code).map(|()| buffer) }
    }

    /// Notes what `work`, of op `op`, does with the buffer, its argument `what`.
    pub(crate) fn used(
        &self,
        work: &Work<'_>,
        op: OpId,
        what: &'static str,
        written: bool,
    ) -> Result<(), OpenClError> {
        if !self.context.is(&work.stream.0.context) {
            return Err(OpenClError::OtherDevice { op, what });
        }
        let ordered = if written { self.uses.write(work) } else { self.uses.read(work) };
        if ordered { Ok(()) } else { Err(OpenClError::Stream { op, what }) }
    }
}

/// Copies `bytes` bytes from byte `from` of one buffer to byte `to` of another. Both have passed `used`.
pub(crate) fn copy_bytes<A: Elem, B: Elem>(
    work: &Work<'_>,
    (source, from): (&Buffer<A>, usize),
    (target, to): (&Buffer<B>, usize),
    bytes: usize,
) -> Result<(), OpenClError> {
    let (size_of_source, size_of_target) = (source.len * size_of::<A>(), target.len * size_of::<B>());
    debug_assert!(from + bytes <= size_of_source && to + bytes <= size_of_target, "outside a buffer");
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: both ranges lie inside their buffers, and the driver refuses those that do not.
    let code = unsafe {
        let (queue, source, target) = (work.stream.0.raw, source.raw, target.raw);
        ffi::clEnqueueCopyBuffer(queue, source, target, from, to, bytes, 0, null(), null_mut())
    };
    check("clEnqueueCopyBuffer", code)
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; OpenCL frees the memory when all work on it is done. A failure leaves nothing to do.
        let _ = unsafe { ffi::clReleaseMemObject(self.raw) };
    }
}

impl<T: Elem> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("dtype", &T::DTYPE).finish()
    }
}
