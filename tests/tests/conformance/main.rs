//! The conformance suite on the devices of this repository.

mod host;
mod suite;
