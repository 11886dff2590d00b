//! The program `train`: a small byte-level language model whose blocks are MoE layers.

pub mod history;
pub mod picture;
