//! Entry points for fuzzers: each takes any bytes, and must return without a panic and without asking for much memory.
//!
//! `fuzz/` hands them to cargo-fuzz; the tests run them on mutations with a fixed seed.

mod config;

pub use config::config;

use crate::fixture::Case;
use crate::verify::{Outcome, verify_case};
use moe_core::Host;

/// A file of any content: it is read, and if that succeeds, verified.
pub fn fixture(bytes: &[u8]) -> Option<Outcome> {
    Case::parse(bytes).ok().map(|case| verify_case(&Host, &case))
}
