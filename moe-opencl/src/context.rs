//! The context: what buffers, programs and streams of one device share.

use crate::error::{OpenClError, check};
use crate::platform::Listed;
use ocl::ffi::{self, cl_context};
use std::ptr::null_mut;

/// An open device.
pub(crate) struct Context {
    pub(crate) listed: Listed,
    pub(crate) raw: cl_context,
}

// SAFETY: OpenCL takes calls for a context from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn open(listed: Listed) -> Result<Self, OpenClError> {
        let mut code = 0;
        let properties = [ffi::CL_CONTEXT_PLATFORM as isize, listed.ids.platform as isize, 0];
        // SAFETY: the properties end in 0, the device is one of the platform's, the pointers are valid.
        let raw = unsafe {
            let device = &listed.ids.device;
            ffi::clCreateContext(properties.as_ptr(), 1, device, None, null_mut(), &mut code)
        };
        check("clCreateContext", code)?;
        Ok(Self { listed, raw })
    }

    /// Whether both are of one opening of a device.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: created in `open`. A failure leaves nothing to do.
        let _ = unsafe { ffi::clReleaseContext(self.raw) };
    }
}
