//! The program `verify` on the repository's fixtures, and on damaged ones.

mod damage;
mod fuzz;
mod golden;
mod processes;
mod refusal;

use std::path::PathBuf;

/// The repository's fixtures.
fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"))
}

/// The contents of one of them.
fn fixture(name: &str) -> Vec<u8> {
    let path = fixtures().join(name).with_extension("safetensors");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
