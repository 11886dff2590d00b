//! An activation and a router that the layer does not have, from outside.
//!
//! * [`ReGlu`] and [`ReGluBwd`]: `max(g, 0) * u` and its backward, as ops with kernels for every device that has them. `Host` has them by
//!   their references, and `cpu.rs` adds kernels for `Cpu`, which is neither this crate's type nor this crate's trait.
//! * [`Experts`]: a layer's experts with that activation between the layer's own products.
//! * [`hash_route`]: a router without weights, put in the place of the layer's.
#![forbid(unsafe_code)]

#[cfg(test)]
mod conforms;
mod cpu;
mod experts;
mod reglu;
mod reglu_bwd;
mod router;

pub use experts::Experts;
pub use reglu::{ReGlu, ReGluArgs, ReGluDims};
pub use reglu_bwd::{ReGluBwd, ReGluBwdArgs};
pub use router::hash_route;
