//! Groups of GPUs over NCCL. All but a few tests need two GPUs, and NCCL.

mod collectives;
mod failures;
mod killed;
mod layouts;
mod rig;
