//! What only a GPU has: streams that order work, captured graphs, memory that ends; and steps that repeat bit for bit, at
//! sizes that fill it, with results held against f64.

mod exact;
mod few;
mod gate;
mod graph;
mod index;
mod kernels;
mod large;
mod memory;
mod rig;
mod slopes;
mod steps;
mod streams;
