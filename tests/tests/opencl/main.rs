//! OpenCL devices, all that the loader finds: the conformance suite, ways of the products, the router's division, facts, streams,
//! programs on disk, several devices at once.

mod cache;
mod conformance;
mod devices;
mod division;
mod facts;
mod oclgrind;
mod several;
mod streams;
mod ways;
