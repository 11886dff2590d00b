//! Keeps documentation and code together.

/// The README's example runs as it stands.
#[cfg(doctest)]
#[doc = include_str!("../../../../README.md")]
pub struct Readme;
