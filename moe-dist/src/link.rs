//! Link: how frames get from one rank to another.

use std::fmt;

/// How frames go between this rank and another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Link {
    /// within the process
    Memory,
    /// a Unix socket between processes of one host
    Unix,
    /// TCP in clear, on the loopback
    Tcp,
    /// TCP in encrypted records
    Encrypted,
}

impl fmt::Display for Link {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Memory => "memory",
            Self::Unix => "Unix sockets",
            Self::Tcp => "TCP",
            Self::Encrypted => "TCP, encrypted",
        })
    }
}
