//! The program `train`: a small byte-level language model whose blocks are MoE layers.

pub mod checkpoint;
pub mod history;
pub mod launch;
pub mod log;
pub mod options;
pub mod picture;
pub mod program;
pub mod run;
pub mod schedule;
