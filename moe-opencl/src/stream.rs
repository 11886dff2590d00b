//! Streams: ordered queues of work, each with kernel objects of its own.

use crate::context::Context;
use crate::error::{OpenClError, check, check_wait};
use crate::event::Event;
use crate::order::{Clock, Work, locked};
use crate::program::{Kernel, Key, Program};
use ocl::ffi::{self, cl_command_queue};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// An ordered queue of work on one device. Clones are the same queue.
#[derive(Clone)]
pub struct Stream(pub(crate) Arc<Queue>);

pub(crate) struct Queue {
    pub(crate) context: Arc<Context>,
    pub(crate) raw: cl_command_queue,
    pub(crate) id: u64,
    pub(crate) clock: Clock,
    /// Setting a kernel's arguments is not safe between threads, so no two streams share one.
    kernels: Mutex<HashMap<(Key, &'static str), Kernel>>,
}

// SAFETY: OpenCL takes calls for one queue from any thread.
unsafe impl Send for Queue {}
// SAFETY: as above; kernels are behind a lock.
unsafe impl Sync for Queue {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, OpenClError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut code = 0;
        // SAFETY: the context is of this device, the pointer is valid. Without properties work runs in order.
        let raw = unsafe { ffi::clCreateCommandQueue(context.raw, context.listed.ids.device, 0, &mut code) };
        check("clCreateCommandQueue", code)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (context, clock, kernels) = (context.clone(), Clock::default(), Mutex::default());
        Ok(Self(Arc::new(Queue { context, raw, id, clock, kernels })))
    }

    /// Begins to put a piece of work on the stream.
    pub(crate) fn work(&self) -> Work<'_> {
        Work::new(self)
    }

    /// Does something with this stream's object for a kernel of `program`.
    pub(crate) fn with_kernel<R>(
        &self,
        program: &Program,
        name: &'static str,
        work: impl FnOnce(&Kernel) -> Result<R, OpenClError>,
    ) -> Result<R, OpenClError> {
        let mut kernels = locked(&self.0.kernels);
        let key = (program.key, name);
        if let Some(kernel) = kernels.get(&key) {
            return work(kernel);
        }
        work(kernels.entry(key).or_insert(program.kernel(name)?))
    }

    /// The next work comes after what is on `other` now.
    pub(crate) fn follow(&self, other: &Self) -> Result<(), OpenClError> {
        Event::record(other)?.hold(self)
    }

    pub(crate) fn sync(&self) -> Result<(), OpenClError> {
        let at = self.0.clock.now();
        // SAFETY: the stream lives as long as `self`.
        check_wait("clFinish", unsafe { ffi::clFinish(self.0.raw) })?;
        self.0.clock.seen(at);
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: nobody else has the queue; the driver finishes its work first. A failure leaves nothing to do.
        let _ = unsafe { ffi::clReleaseCommandQueue(self.raw) };
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.0.id).finish()
    }
}
