//! Every collective over every transport, against its definition.

// The same tests for each transport: a module here has `ends`, which makes the worlds that its tests run on.
#![allow(clippy::duplicate_mod)]

mod channels;
mod encrypted;
mod tcp;
mod unix;
