//! What can go wrong on an OpenCL device.

use moe_core::{BackendError, DType, ErrorKind, OpId, ShapeError};
use ocl::ffi;
use std::fmt;

/// A call's answer, as a number and by its name in the standard.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            ffi::CL_DEVICE_NOT_FOUND => "CL_DEVICE_NOT_FOUND",
            ffi::CL_DEVICE_NOT_AVAILABLE => "CL_DEVICE_NOT_AVAILABLE",
            ffi::CL_COMPILER_NOT_AVAILABLE => "CL_COMPILER_NOT_AVAILABLE",
            ffi::CL_MEM_OBJECT_ALLOCATION_FAILURE => "CL_MEM_OBJECT_ALLOCATION_FAILURE",
            ffi::CL_OUT_OF_RESOURCES => "CL_OUT_OF_RESOURCES",
            ffi::CL_OUT_OF_HOST_MEMORY => "CL_OUT_OF_HOST_MEMORY",
            ffi::CL_BUILD_PROGRAM_FAILURE => "CL_BUILD_PROGRAM_FAILURE",
            ffi::CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST => {
                "CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"
            }
            ffi::CL_INVALID_VALUE => "CL_INVALID_VALUE",
            ffi::CL_INVALID_CONTEXT => "CL_INVALID_CONTEXT",
            ffi::CL_INVALID_COMMAND_QUEUE => "CL_INVALID_COMMAND_QUEUE",
            ffi::CL_INVALID_BINARY => "CL_INVALID_BINARY",
            ffi::CL_INVALID_BUILD_OPTIONS => "CL_INVALID_BUILD_OPTIONS",
            ffi::CL_INVALID_KERNEL_NAME => "CL_INVALID_KERNEL_NAME",
            ffi::CL_INVALID_ARG_SIZE => "CL_INVALID_ARG_SIZE",
            ffi::CL_INVALID_KERNEL_ARGS => "CL_INVALID_KERNEL_ARGS",
            ffi::CL_INVALID_WORK_GROUP_SIZE => "CL_INVALID_WORK_GROUP_SIZE",
            ffi::CL_INVALID_BUFFER_SIZE => "CL_INVALID_BUFFER_SIZE",
            ffi::CL_PLATFORM_NOT_FOUND_KHR => "CL_PLATFORM_NOT_FOUND_KHR",
            other => return write!(f, "code {other}"),
        };
        write!(f, "{name} ({})", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An error of [`OpenCl`](crate::OpenCl).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenClError {
    /// The loader found no driver.
    #[error(
        "no OpenCL platform found: install the device's OpenCL driver (Debian: intel-opencl-icd for Intel GPUs), \
         or PoCL for the processor (Debian: pocl-opencl-icd); clinfo lists what the loader finds"
    )]
    NoPlatform,
    /// A platform's or device's number is too high.
    #[error("there is no OpenCL {what} {asked}: {found} found")]
    NoDevice {
        /// `platform` or `device`
        what: &'static str,
        /// the number asked for
        asked: usize,
        /// how many there are
        found: usize,
    },
    /// The device cannot run the kernels.
    #[error("{name} has no {what}, which the kernels need")]
    Lacks {
        /// the device's name
        name: String,
        /// what it lacks
        what: &'static str,
    },
    /// The device cannot give the reproducible gate's bits; an op asked for them.
    #[error(
        "{name} has no {what}, which the reproducible gate needs; set `rule.gate = GateMath::Native` to do without its bits"
    )]
    Inexact {
        /// the device's name
        name: String,
        /// what it lacks
        what: &'static str,
    },
    /// The driver's compiler refused a program.
    #[error("{program} did not compile for {name}:\n{log}")]
    Build {
        /// the program's name
        program: &'static str,
        /// the device's name
        name: String,
        /// what the compiler said
        log: String,
    },
    /// Memory ran out, or the size is more than the device allows. Nothing was changed.
    #[error("out of OpenCL memory: could not allocate {len} elements of {dtype}")]
    Memory {
        /// elements asked for
        len: usize,
        /// their type
        dtype: DType,
    },
    /// A copy's lengths differ, or an argument does not fit.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Another stream may still be using the buffer.
    #[error(
        "{op}: another stream may still be using `{what}`; hand it over, wait for an event of that stream, or sync that stream first"
    )]
    Stream {
        /// the op
        op: OpId,
        /// the argument
        what: &'static str,
    },
    /// A stream, event or buffer of one device was used on another.
    #[error(
        "{op}: `{what}` is of another device, or of the same one opened twice; open it once and clone it, or bring values there by way of the host"
    )]
    OtherDevice {
        /// the op
        op: OpId,
        /// the argument
        what: &'static str,
    },
    /// The driver refused a call.
    #[error("{call} failed: {code}")]
    Call {
        /// the function's, or the kernel's name
        call: &'static str,
        /// the driver's answer
        code: Code,
    },
    /// The device failed while it worked; the stream is lost.
    #[error("the device failed in earlier work, seen at {call}: {code}")]
    Fault {
        /// the function that told
        call: &'static str,
        /// the driver's answer
        code: Code,
    },
}

impl BackendError for OpenClError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoPlatform | Self::NoDevice { .. } => ErrorKind::Unavailable,
            Self::Memory { .. } => ErrorKind::OutOfMemory,
            Self::Call { code, .. } if out_of_memory(code.0) => ErrorKind::OutOfMemory,
            Self::Shape(_) => ErrorKind::Shape,
            Self::Stream { .. } | Self::OtherDevice { .. } => ErrorKind::Stream,
            Self::Lacks { .. } | Self::Inexact { .. } | Self::Build { .. } => ErrorKind::Unsupported,
            Self::Call { .. } | Self::Fault { .. } => ErrorKind::Fault,
        }
    }
}

impl From<OpenClError> for moe_core::Error<OpenClError> {
    fn from(error: OpenClError) -> Self {
        Self::Device(error)
    }
}

/// Whether a call's answer says that memory ran out.
pub(crate) fn out_of_memory(code: i32) -> bool {
    matches!(
        code,
        ffi::CL_MEM_OBJECT_ALLOCATION_FAILURE | ffi::CL_OUT_OF_RESOURCES | ffi::CL_OUT_OF_HOST_MEMORY
    )
}

/// Turns the driver's answer into a result. `call` names the function.
pub(crate) fn check(call: &'static str, code: i32) -> Result<(), OpenClError> {
    match code {
        ffi::CL_SUCCESS => Ok(()),
        code => Err(OpenClError::Call { call, code: Code(code) }),
    }
}

/// As [`check`], for calls that wait: what they tell happened earlier.
pub(crate) fn check_wait(call: &'static str, code: i32) -> Result<(), OpenClError> {
    match code {
        ffi::CL_SUCCESS => Ok(()),
        code => Err(OpenClError::Fault { call, code: Code(code) }),
    }
}
