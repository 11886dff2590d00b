//! Events: marks in a stream that other streams wait for.

use crate::driver::{Context, check};
use crate::error::CudaError;
use crate::order::Past;
use crate::stream::Stream;
use cudarc::driver::sys::{self, CUevent, CUevent_flags, CUresult};
use std::ptr::null_mut;
use std::sync::Arc;

/// A mark in a stream.
pub struct Event {
    context: Arc<Context>,
    raw: CUevent,
    past: Past,
}

// SAFETY: the driver takes calls for an event from any thread.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn record(stream: &Stream) -> Result<Self, CudaError> {
        let context = stream.0.context.clone();
        stream.outside_capture("an event")?;
        context.bind()?;
        let mut raw = null_mut();
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: a context is current, the pointer is valid.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags) })?;
        let clock = &stream.0.clock;
        let event = Self { context, raw, past: clock.past(stream.0.id, clock.now()) };
        // SAFETY: event and stream live, and belong to one context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(raw, stream.0.raw) })?;
        Ok(event)
    }

    /// Whether the stream has come to the mark. Does not wait.
    ///
    /// # Errors
    /// The driver's; a fault of earlier work may surface here.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        self.context.bind()?;
        // SAFETY: the event lives, and was recorded.
        match unsafe { sys::cuEventQuery(self.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    /// Work put on `stream` from now on waits for the mark.
    pub(crate) fn hold(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.outside_capture("an event")?;
        stream.0.context.bind()?;
        // SAFETY: event and stream live.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream.0.raw, self.raw, 0) })?;
        stream.0.clock.follows(&self.past);
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; the driver keeps what is waited for. A failure leaves nothing to do.
        let _ = self.context.bind().map(|()| unsafe { sys::cuEventDestroy_v2(self.raw) });
    }
}
