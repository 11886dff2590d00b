//! Mixture-of-Experts layer: traits, ops with reference math, layer and runner.
//!
//! A layer is used through four values: [`MoeLayer`] (weights, shared by reference), [`Runner`] (stream and
//! workspace, one per thread), [`Saved`] (what backward needs, one per layer and micro-batch in flight) and [`Grads`]. The
//! same code runs on every [`Device`]; [`Host`] is the reference.
//!
//! ```
//! use moe_core::ndarray::Array2;
//! use moe_core::{AdamW, Host, MoeConfig, MoeLayer, Runner, Sizes};
//!
//! let config = MoeConfig::new(Sizes { width: 16, hidden: 32, experts: 8, top_k: 2 })?;
//! let device = Host;
//! let mut layer = MoeLayer::<_, f32>::init(&device, &config, 0)?; // seed
//! let mut runner = Runner::new(&device, &config, 64)?; // most tokens a call
//! let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
//! let mut adam = AdamW::new(&layer)?;
//! let x = runner.upload(Array2::ones((64, 16)).view())?;
//! let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
//! runner.forward_train(&layer, &x, &mut saved, &mut y)?;
//! let dy = runner.upload(runner.download(&y)?.view())?; // loss = |y|^2 / 2
//! runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads)?;
//! adam.step(&mut runner, &mut layer, &mut grads, 3e-4)?; // packs, empties the gradients
//! runner.forward(&layer, &x, &mut y)?; // inference
//! # Ok::<(), moe_core::Error<moe_core::HostError>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;

mod collective;
mod config;
mod device;
mod error;
mod host;
mod layer;
pub mod ops;
mod optimizer;
mod reducible;
mod runner;
mod scalar;
mod session;
mod trace;
mod view;

pub use collective::{Collective, Reduce, Solo};
pub use config::{
    Axis, Balance, BalanceLoss, Capacity, DropPolicy, MemoryPolicy, MoeConfig, Part, Place, ScoreOrder,
    SharedExperts, Sizes, TENSORS, TensorSpec,
};
pub use device::{Device, Kernel, Op, Path};
pub use error::{
    BackendError, CollectiveError, CollectiveFault, ConfigError, Error, ErrorKind, OpId, ShapeError,
    check_index, check_offsets, expect, product, within,
};
pub use host::{Host, HostError};
pub use layer::{Grads, MoeLayer, SharedTensors, StateTensor, Tensors};
pub use ops::MoeDevice;
pub use optimizer::{AdamW, AdamWOptions};
pub use reducible::Reducible;
pub use runner::{ALL_TO_ALL, Batch, COUNTS, Figures, Groups, Limits, Routing, Rows, Runner, Saved};
pub use scalar::{Accum, DType, Elem, Scalar, exp};
pub use session::{Session, run};
pub use trace::Trace;
pub use view::{In, Out, View, ViewMut, first, first_mut, whole, whole_mut};

pub use ndarray;
