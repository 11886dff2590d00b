//! Notice: the failure that closed a world, as it travels from rank to rank.

use crate::frame::Operation;
use moe_core::{CollectiveError, CollectiveFault};

/// What failed, in the words of the rank that saw it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) fault: CollectiveFault,
    pub(crate) group: String,
    /// as a rank of the group
    pub(crate) rank: usize,
    pub(crate) operation: Operation,
    pub(crate) sequence: u64,
    pub(crate) detail: String,
}

impl Notice {
    pub(crate) fn error(&self) -> CollectiveError {
        let Self { group, rank, operation, sequence, fault, detail } = self.clone();
        let error = CollectiveError::new(group, rank, operation.name(), sequence, fault);
        if detail.is_empty() { error } else { error.because(detail) }
    }
}
