//! What can go wrong on a GPU.

use cudarc::driver::sys::CUresult;
use moe_core::{BackendError, CollectiveError, DType, ErrorKind, OpId, ShapeError};
use std::sync::Arc;

/// An error of [`Cuda`](crate::Cuda).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// There is no driver.
    #[error(
        "no NVIDIA driver: libcuda was not found; install the driver (580 or newer), nothing else is needed"
    )]
    NoDriver,
    /// The driver is too old for a function that is needed.
    #[error("the NVIDIA driver has no {symbol}; install driver 580 or newer")]
    Symbol {
        /// the function's name
        symbol: &'static str,
    },
    /// The driver is too old for the kernels.
    #[error("the NVIDIA driver supports CUDA {}.{}, but the kernels need 13.0; install driver 580 or newer", found / 1000, found % 1000 / 10)]
    OldDriver {
        /// the driver's CUDA version, as 1000 * major + 10 * minor
        found: i32,
    },
    /// The device's number is too high.
    #[error("there is no CUDA device {asked}: {found} found")]
    NoDevice {
        /// the number asked for
        asked: usize,
        /// devices there are
        found: usize,
    },
    /// No kernel was compiled for this GPU.
    #[error("{name} has compute capability {major}.{minor}, but the kernels need 7.5 or newer")]
    OldDevice {
        /// the device's name
        name: String,
        /// compute capability
        major: i32,
        /// compute capability
        minor: i32,
    },
    /// The device lacks something.
    #[error("{name} has no {what}")]
    Lacks {
        /// the device's name
        name: String,
        /// what it lacks
        what: &'static str,
    },
    /// Memory ran out, or the size does not fit in the address space. Nothing was changed.
    #[error("out of GPU memory: could not allocate {len} elements of {dtype}")]
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
    /// A graph is being captured, and this cannot be part of it.
    #[error(
        "{0} cannot be part of a graph that is being captured; do it before or after (a step that has run once uploads nothing more)"
    )]
    Capture(&'static str),
    /// A stream or buffer of one GPU was used on another.
    #[error("{op}: `{what}` is on another GPU; bring its values there by way of the host")]
    OtherDevice {
        /// the op
        op: OpId,
        /// the argument
        what: &'static str,
    },
    /// A collective operation on the stream was given up. Work behind it has run on unspecified values: go on from the last
    /// checkpoint, on a new stream.
    #[error("{0}; what the stream did after that is worthless")]
    Collective(#[source] Arc<CollectiveError>),
    /// The driver refused a call.
    #[error("{call} failed: {code:?}")]
    Call {
        /// the function's name
        call: &'static str,
        /// the driver's answer
        code: CUresult,
    },
    /// The GPU failed while it worked. Nothing on it can be used any more: restart the process.
    #[error("the GPU failed in earlier work, seen at {call}: {code:?}; restart the process")]
    Fault {
        /// the function that told
        call: &'static str,
        /// the driver's answer
        code: CUresult,
    },
}

impl BackendError for CudaError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoDriver
            | Self::Symbol { .. }
            | Self::OldDriver { .. }
            | Self::NoDevice { .. }
            | Self::OldDevice { .. } => ErrorKind::Unavailable,
            Self::Memory { .. } | Self::Call { code: CUresult::CUDA_ERROR_OUT_OF_MEMORY, .. } => {
                ErrorKind::OutOfMemory
            }
            Self::Shape(_) => ErrorKind::Shape,
            Self::Stream { .. } | Self::OtherDevice { .. } => ErrorKind::Stream,
            Self::Lacks { .. } | Self::Capture(_) => ErrorKind::Unsupported,
            Self::Collective(_) | Self::Call { .. } | Self::Fault { .. } => ErrorKind::Fault,
        }
    }
}

impl From<CudaError> for moe_core::Error<CudaError> {
    fn from(error: CudaError) -> Self {
        Self::Device(error)
    }
}
