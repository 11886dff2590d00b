//! Lend: a stream and addresses of buffers, for work that another library puts on the stream under the same rules as this
//! crate's own: buffers are used by one stream at a time, and freed behind the work.

use crate::device::Cuda;
use crate::error::CudaError;
use crate::order::Work;
use crate::stream::Stream;
use moe_core::{Elem, In, OpId, Out};
use std::ffi::c_void;

/// A piece of work that another library is putting on a stream. While it lives, nobody else puts work there.
pub struct Lent<'a> {
    work: Work<'a>,
    op: OpId,
}

impl Stream {
    /// Begins a piece of another library's work, named `op` in errors. The GPU's primary context is current to the thread.
    ///
    /// # Errors
    /// [`CudaError::Capture`] while a graph is being captured; [`CudaError::Collective`] if the stream has failed; the driver's.
    pub fn lend(&self, op: OpId) -> Result<Lent<'_>, CudaError> {
        Ok(Lent { work: self.work_outside_capture(op.0)?, op })
    }
}

impl Lent<'_> {
    /// The stream, a `cudaStream_t` or `CUstream`. Valid as long as a clone of the [`Stream`] lives.
    pub fn stream(&self) -> *mut c_void {
        self.work.stream.0.raw.cast()
    }

    /// The address of the elements, which the work may read. It is valid for work that is put on the stream while `self` lives;
    /// never on the host.
    ///
    /// # Errors
    /// [`CudaError::Stream`] if another stream may still be writing to them; [`CudaError::OtherDevice`].
    pub fn read<T: Elem>(
        &self,
        what: &'static str,
        view: In<'_, Cuda, T>,
    ) -> Result<*const c_void, CudaError> {
        let (buffer, range) = view.parts();
        buffer.used(&self.work, self.op, what, false)?;
        Ok(buffer.address(range.start) as *const c_void)
    }

    /// As [`read`](Self::read), for elements that the work may also write.
    ///
    /// # Errors
    /// [`CudaError::Stream`] if another stream may still be using them; [`CudaError::OtherDevice`].
    pub fn write<T: Elem>(
        &self,
        what: &'static str,
        view: Out<'_, Cuda, T>,
    ) -> Result<*mut c_void, CudaError> {
        let (buffer, range) = view.parts();
        buffer.used(&self.work, self.op, what, true)?;
        Ok(buffer.address(range.start) as *mut c_void)
    }
}

impl Cuda {
    /// Makes the GPU's primary context current to this thread, for libraries that go by it.
    ///
    /// # Errors
    /// The driver's.
    pub fn make_current(&self) -> Result<(), CudaError> {
        self.context().bind()
    }
}
