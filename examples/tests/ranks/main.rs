//! The program `train` over ranks: threads of this process, and real processes.

mod curves;
mod hosts;
mod launchers;
#[path = "../../../moe-dist/tests/network/mod.rs"]
mod network;
mod processes;
mod rig;
