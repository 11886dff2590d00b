//! OpenCL devices, all that the loader finds: the conformance suite, ways of the products, the router's division, facts, streams.

mod conformance;
mod devices;
mod division;
mod facts;
mod oclgrind;
mod streams;
mod ways;
