//! Every collective over every transport, against its definition.

mod definition;
mod device;
mod failures;
mod rig;
