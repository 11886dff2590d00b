//! Events: marks in a stream that other streams wait for.

use crate::context::Context;
use crate::error::{OpenClError, check};
use crate::order::Past;
use crate::stream::Stream;
use moe_core::OpId;
use ocl::ffi::{self, cl_event};
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// A mark in a stream.
pub struct Event {
    context: Arc<Context>,
    raw: cl_event,
    past: Past,
}

// SAFETY: OpenCL takes calls for an event from any thread.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn record(stream: &Stream) -> Result<Self, OpenClError> {
        let queue = &stream.0;
        let past = queue.clock.past(queue.id, queue.clock.now());
        let mut raw = null_mut();
        // SAFETY: the queue lives, the pointer is valid; without a list the mark comes after all earlier work.
        let code = unsafe { ffi::clEnqueueMarkerWithWaitList(queue.raw, 0, null(), &mut raw) };
        check("clEnqueueMarkerWithWaitList", code)?;
        let event = Self { context: queue.context.clone(), raw, past };
        // A queue that keeps its work to itself would let the other stream wait for ever.
        // SAFETY: the queue lives.
        check("clFlush", unsafe { ffi::clFlush(queue.raw) })?;
        Ok(event)
    }

    /// Work put on `stream` from now on waits for the mark.
    pub(crate) fn hold(&self, stream: &Stream) -> Result<(), OpenClError> {
        if !self.context.is(&stream.0.context) {
            return Err(OpenClError::OtherDevice { op: OpId("wait"), what: "event" });
        }
        let work = stream.work();
        // SAFETY: queue and event live, and are of one context.
        let code = unsafe { ffi::clEnqueueBarrierWithWaitList(stream.0.raw, 1, &self.raw, null_mut()) };
        check("clEnqueueBarrierWithWaitList", code)?;
        work.stream.0.clock.follows(&self.past);
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; the driver keeps what is waited for. A failure leaves nothing to do.
        let _ = unsafe { ffi::clReleaseEvent(self.raw) };
    }
}
