//! Transport: moves frames between two ranks of a world. All that is below a collective's algorithm.

use crate::frame::HEADER;
use crate::link::Link;
use crate::notice::Notice;
use moe_core::CollectiveFault;
use std::time::Instant;

/// One rank's way to all others.
pub(crate) trait Transport: Send {
    /// Sends a frame to each pair's peer and receives one from it, all at once, so that no order of ranks can block.
    ///
    /// The received header goes to `got`. Where it is not `want`, the payload is left alone, and the exchange ends without an
    /// error when the headers of all pairs have been sent and received: the caller compares.
    fn exchange(&mut self, pairs: &mut [Pair<'_>], deadline: Instant) -> Result<(), Stop>;

    /// Looks, without waiting, whether a rank has closed the world or one of `ranks` is gone. For operations that need no transport.
    #[cfg(feature = "nccl")]
    fn news(&mut self, ranks: &[usize]) -> Option<Stop>;

    /// How frames of `peer`, another rank, come.
    fn link(&self, peer: usize) -> Option<Link>;

    /// Tells all ranks why the world is closed. Does not wait for them. Nothing is sent or received after it.
    fn announce(&mut self, notice: &Notice);
}

/// What goes to and comes from one peer in a round.
pub(crate) struct Pair<'a> {
    /// as a rank of the world
    pub(crate) peer: usize,
    pub(crate) header: [u8; HEADER],
    /// one after the other
    pub(crate) payload: [&'a [u8]; 2],
    pub(crate) want: [u8; HEADER],
    /// one after the other
    pub(crate) target: [&'a mut [u8]; 2],
    pub(crate) got: Option<[u8; HEADER]>,
}

/// Why an exchange did not come to its end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// another rank saw a failure and said so
    Told(Notice),
    /// this rank sees it first
    Failed {
        /// the rank that failed, as a rank of the world
        rank: usize,
        fault: CollectiveFault,
        detail: String,
    },
}
