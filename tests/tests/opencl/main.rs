//! OpenCL devices, all that the loader finds: the conformance suite.

mod conformance;
mod devices;
mod ways;
