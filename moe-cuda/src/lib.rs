//! The layer on NVIDIA GPUs of compute capability 7.5 and newer.
//!
//! ```text
//! driver   the library, found at run time      device   Cuda: a GPU
//! stream   queues of work                      buffer   memory, owned by one stream
//! event    marks between streams               graph    captured steps
//! image    compiled kernels                    call     arguments and launches
//! order    which work comes before which     tensor_map  boxes for the copy engine
//! lend     streams and addresses for work of other libraries
//! ops      one file per op, named as in moe-core; its kernels in kernels/ under the same name
//! ```
//!
//! The crate builds without CUDA, and its users need the driver alone: `kernels/*.cu` are compiled beforehand into
//! `images/*.fatbin`, which are embedded.

mod buffer;
mod call;
mod device;
mod driver;
mod error;
mod event;
mod graph;
mod image;
mod lend;
mod ops;
mod order;
mod stream;
mod tensor_map;

pub use buffer::{Buffer, Memory};
pub use device::Cuda;
pub use error::CudaError;
pub use event::Event;
pub use graph::Graph;
pub use lend::Lent;
pub use ops::Float;
pub use stream::Stream;
