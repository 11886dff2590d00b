//! The conformance suite on the devices of this repository.

mod cpu;
mod host;
mod suite;
