//! Many ranks.

mod alone;
mod apart;
mod bits;
mod cases;
mod checkpoint;
mod equality;
mod exchange;
mod layout;
mod mesh;
mod mixed;
#[cfg(feature = "nccl")]
mod nccl;
mod part;
mod processes;
mod ranks;
mod rules;
mod steps;
