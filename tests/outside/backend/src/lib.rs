//! Far: a device behind a queue, in memory that the program cannot see.
//!
//! It computes nothing by itself: a worker thread per stream runs the ops' references. But it has all that makes a GPU different from a
//! slice: launches return before they have run, memory is bytes behind a handle, weights have a layout of the
//! device's, a fault surfaces late, and using a buffer on two streams without ordering them is an error. What works here assumes none of what only a host has.
#![forbid(unsafe_code)]

mod device;
mod error;
mod memory;
mod ops;
mod order;
mod stream;
mod travel;

pub use device::Far;
pub use error::FarError;
pub use memory::Memory;
pub use stream::{Event, Stream};
