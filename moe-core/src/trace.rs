//! Trace: which path each op took, and how often.

use crate::device::Path;
use crate::error::OpId;
use alloc::vec::Vec;

/// Counts of (op, path), in the order of first use. Room for every op is made once; recording does not allocate.
#[derive(Clone, Debug)]
pub struct Trace {
    counts: Vec<(OpId, Path, u64)>,
    fault: Option<(OpId, u64)>,
}

const ROOM: usize = 128;

impl Trace {
    pub(crate) fn new() -> Self {
        Self { counts: Vec::with_capacity(ROOM), fault: None }
    }

    /// Launches per (op, path) since the start or the last [`clear`](Trace::clear).
    pub fn counts(&self) -> &[(OpId, Path, u64)] {
        &self.counts
    }

    /// Launches of one op, over all paths.
    pub fn launches(&self, op: OpId) -> u64 {
        self.counts.iter().filter(|(id, ..)| *id == op).map(|(.., count)| count).sum()
    }

    /// Forgets all counts.
    pub fn clear(&mut self) {
        self.counts.clear();
    }

    /// Makes the launch of `op` after `after` more launches of it fail with [`Error::Injected`](crate::Error::Injected),
    /// before anything is put on the device: for tests of what a failure leaves behind.
    pub fn fail(&mut self, op: OpId, after: u64) {
        self.fault = Some((op, after));
    }

    pub(crate) fn fault_due(&mut self, op: OpId) -> bool {
        match &mut self.fault {
            Some((wanted, 0)) if *wanted == op => {
                self.fault = None;
                true
            }
            Some((wanted, after)) if *wanted == op => {
                *after -= 1;
                false
            }
            _ => false,
        }
    }

    pub(crate) fn record(&mut self, op: OpId, path: Path) {
        match self.counts.iter_mut().find(|(id, taken, _)| *id == op && *taken == path) {
            Some((.., count)) => *count += 1,
            None => self.counts.push((op, path, 1)),
        }
    }
}
