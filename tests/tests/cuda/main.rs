//! What only a GPU has: streams that order work, captured graphs, memory that ends; and steps that repeat bit for bit.

mod gate;
mod graph;
mod memory;
mod rig;
mod steps;
mod streams;
