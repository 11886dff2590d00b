//! The layer on a processor's cores: threads, and vector units found at run time.
//!
//! ```text
//! device   Cpu: threads and a vector unit      memory   buffers
//! gemm     grouped products of the experts     chain    the gate's products, bit for bit
//! limits   what the processor can do at most
//! exact    arithmetic with the reference's bits
//! scores   logits to scores                    choose   the K best
//! ops      one file per op, named as in moe-core
//! ```
//!
//! No result depends on the number of threads. Launches allocate nothing: threads share work by a counter, and
//! memory comes from the caller.

mod chain;
mod choose;
mod device;
mod error;
mod exact;
mod gemm;
mod limits;
mod memory;
mod ops;
mod scores;

pub use device::Cpu;
pub use error::CpuError;
pub use gemm::{Float, Isa};
pub use limits::Reader;
pub use memory::Buffer;
