//! The layer on OpenCL devices: Intel's GPUs first, and processors and other GPUs whose platforms have OpenCL 1.2.
//!
//! ```text
//! platform  what the loader lists           context  what an open device's parts share
//! device    OpenCl: an open device          program  kernels, built when they are first needed
//! stream    queues of work                  cache    built programs, on disk
//! event     marks between streams           buffer   memory
//! way       how products are computed       offline  what would be compiled for a device that is not here
//! order     which work comes before which   call     arguments and launches
//! ops       one file per op, named as in moe-core; its kernels in kernels/ under the same name; scores, for three of them
//! ```
//!
//! Binaries that use this crate link libOpenCL, the loader, which finds the drivers (Debian: ocl-icd-opencl-dev to build).
//!
//! # How an op is added
//!
//! 1. `kernels/NAME.cl` holds its kernels, below a comment that says how the work is split. What stands before it is
//!    `kernels/prelude.cl` and the shared files that its source names: storage type `T` with `load` and `store`, exact
//!    arithmetic, and the form of arguments. A kernel takes its buffers as `IN` and `OUT`, then one struct of numbers.
//! 2. `src/ops/NAME.rs` embeds it with `source!`, and implements [`Kernel`](moe_core::Kernel): it fills the struct's twin and
//!    launches the kernels through `Call`, with the buffers in the order of the kernel's signature.
//! 3. `src/ops/mod.rs` names the file, and its source in `SOURCES`.
//!
//! The conformance suite in `tests` then asks it everything that it asks of other devices.

mod buffer;
mod cache;
mod call;
mod context;
mod device;
mod error;
mod event;
pub mod offline;
mod ops;
mod order;
mod platform;
mod program;
mod stream;
mod way;

pub use buffer::Buffer;
pub use device::OpenCl;
pub use error::{Code, OpenClError};
pub use event::Event;
pub use ops::Float;
pub use platform::{DeviceKind, Facts, Listed};
pub use stream::Stream;
pub use way::Way;
