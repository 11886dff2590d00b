//! Samples of every op's arguments, one file each.

mod adamw;
mod bias_update;
mod combine;
mod decode;
mod expert_down;
mod expert_down_bwd;
mod expert_up;
mod expert_up_bwd;
mod expert_wgrad;
mod experts;
mod gate_bwd;
mod gather;
mod merge;
mod pack_weights;
mod route;
mod route_bwd;
mod route_stats;
mod rows;
mod sort;
mod sum_squares;

pub use rows::{Rows, Spread};
