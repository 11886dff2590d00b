//! What can go wrong on the CPU.

use crate::gemm::Isa;
use moe_core::{BackendError, ErrorKind, ShapeError};

/// An error of [`Cpu`](crate::Cpu).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// Memory ran out, or the size does not fit in the address space.
    #[error("out of memory: could not allocate {len} elements of {dtype}")]
    Memory {
        /// elements asked for
        len: usize,
        /// their type
        dtype: moe_core::DType,
    },
    /// A copy's lengths differ, a packed weight has the wrong size, or an index points outside.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// This processor lacks the instruction set that was asked for.
    #[error("this processor does not have {0:?}; `Isa::available` lists what it has")]
    Isa(Isa),
    /// The threads could not be started.
    #[error("could not start {threads} threads")]
    Threads {
        /// threads asked for; 0 for as many as there are cores
        threads: usize,
        /// why
        source: rayon::ThreadPoolBuildError,
    },
}

impl BackendError for CpuError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Memory { .. } => ErrorKind::OutOfMemory,
            Self::Shape(_) => ErrorKind::Shape,
            Self::Isa(_) | Self::Threads { .. } => ErrorKind::Unavailable,
        }
    }
}
