//! The program `train` over ranks: threads of this process, and real processes.

mod curves;
mod hosts;
mod launchers;
mod processes;
mod rig;
