//! What the example programs share.

pub mod bench;
pub mod dense;
pub mod device;
pub mod entropy;
pub mod fixture;
pub mod fuzz;
pub mod gate;
pub mod model;
pub mod ranks;
pub mod real;
pub mod rng;
pub mod text;
pub mod train;
pub mod verify;
