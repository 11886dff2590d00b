//! What can go wrong on the far device.

use moe_core::{BackendError, ErrorKind, ShapeError};

/// An error of [`Far`](crate::Far).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FarError {
    /// A stream's worker could not be started, or has ended.
    #[error("the stream's worker is not there: {0}")]
    Worker(String),
    /// Memory ran out.
    #[error("out of memory: could not allocate {len} elements of {dtype}")]
    Memory {
        /// elements asked for
        len: usize,
        /// their type
        dtype: moe_core::DType,
    },
    /// A buffer was used on a stream while another may still be using it.
    #[error(
        "a buffer was used on stream {stream} while stream {user} may still be using it: call `hand_over`, or wait"
    )]
    Stream {
        /// the stream that used it before
        user: u64,
        /// the stream that it was used on
        stream: u64,
    },
    /// Lengths of a copy differ.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// An earlier launch failed while it ran.
    #[error("an earlier launch failed: {0}")]
    Fault(ShapeError),
}

impl BackendError for FarError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Worker(_) => ErrorKind::Unavailable,
            Self::Memory { .. } => ErrorKind::OutOfMemory,
            Self::Stream { .. } => ErrorKind::Stream,
            Self::Shape(_) => ErrorKind::Shape,
            Self::Fault(_) => ErrorKind::Fault,
        }
    }
}
