//! OpenCL devices, all that the loader finds: the conformance suite, ways of the products, the router's division, streams.

mod conformance;
mod devices;
mod division;
mod streams;
mod ways;
