//! The conformance suite on the devices of this repository.

mod cpu;
mod cuda;
mod host;
mod suite;
