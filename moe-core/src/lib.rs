//! Mixture-of-Experts layer: traits, ops with reference math, layer and runner.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

mod collective;
mod device;
mod error;
mod host;
pub mod ops;
mod scalar;
mod session;
mod trace;
mod view;

pub use collective::{Collective, Reduce, Solo};
pub use device::{Device, Kernel, Op, Path};
pub use error::{
    BackendError, CollectiveError, ConfigError, Error, ErrorKind, OpId, ShapeError, check_index,
    check_offsets, expect, product, within,
};
pub use host::{Host, HostError};
pub use ops::MoeDevice;
pub use scalar::{Accum, DType, Elem, Scalar, exp};
pub use session::{Session, run};
pub use trace::Trace;
pub use view::{In, Out, View, ViewMut, first, first_mut, whole, whole_mut};

pub use ndarray;
