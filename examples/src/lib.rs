//! What the example programs share.

pub mod dense;
pub mod device;
pub mod entropy;
pub mod model;
pub mod real;
pub mod rng;
pub mod text;
pub mod train;
