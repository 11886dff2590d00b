//! Called: what a rank has called. All members must have called alike; each first checks its own arguments.

use crate::frame::Operation;
use moe_core::{DType, OpId, Reduce, ShapeError, expect, within};

/// A call of an operation, as its fingerprint has it.
#[derive(Clone, Copy)]
pub(crate) struct Called<'a> {
    pub(crate) operation: Operation,
    pub(crate) reduce: Option<Reduce>,
    pub(crate) dtype: Option<DType>,
    /// elements of the operation
    pub(crate) elements: usize,
    /// elements per rank
    pub(crate) counts: Option<&'a [usize]>,
    pub(crate) root: usize,
}

/// Elements on this rank's two sides.
#[derive(Clone, Copy)]
pub(crate) struct Sides {
    pub(crate) source: usize,
    pub(crate) target: usize,
}

impl<'a> Called<'a> {
    pub(crate) fn new(operation: Operation, dtype: Option<DType>) -> Self {
        Self { operation, reduce: None, dtype, elements: 0, counts: None, root: 0 }
    }

    pub(crate) fn all_reduce(dtype: DType, how: Reduce, elements: usize) -> Self {
        Self { reduce: Some(how), elements, ..Self::new(Operation::AllReduce, Some(dtype)) }
    }

    pub(crate) fn all_gather(
        [me, size]: [usize; 2],
        dtype: DType,
        sides: Sides,
        counts: &'a [usize],
    ) -> Result<Self, ShapeError> {
        let operation = Operation::AllGather;
        parts(operation, size, "counts", counts, "target", sides.target)?;
        length(operation, "source", counts[me], sides.source)?;
        Ok(Self { elements: sides.target, counts: Some(counts), ..Self::new(operation, Some(dtype)) })
    }

    pub(crate) fn reduce_scatter(
        [me, size]: [usize; 2],
        dtype: DType,
        how: Reduce,
        sides: Sides,
        counts: &'a [usize],
    ) -> Result<Self, ShapeError> {
        let operation = Operation::ReduceScatter;
        parts(operation, size, "counts", counts, "source", sides.source)?;
        length(operation, "target", counts[me], sides.target)?;
        let called = Self::new(operation, Some(dtype));
        Ok(Self { reduce: Some(how), elements: sides.source, counts: Some(counts), ..called })
    }

    /// Counts are a pair's own: all members agree on the operation and the type alone.
    pub(crate) fn all_to_all(
        [me, size]: [usize; 2],
        dtype: DType,
        sides: Sides,
        send: &[usize],
        receive: &[usize],
    ) -> Result<Self, ShapeError> {
        let operation = Operation::AllToAll;
        parts(operation, size, "send", send, "source", sides.source)?;
        parts(operation, size, "receive", receive, "target", sides.target)?;
        length(operation, "receive[rank]", send[me], receive[me])?;
        Ok(Self::new(operation, Some(dtype)))
    }

    pub(crate) fn broadcast(
        size: usize,
        dtype: DType,
        root: usize,
        elements: usize,
    ) -> Result<Self, ShapeError> {
        let operation = Operation::Broadcast;
        within(OpId(operation.name()), "root", 0, size - 1, root)?;
        Ok(Self { elements, root, ..Self::new(operation, Some(dtype)) })
    }

    pub(crate) fn barrier() -> Self {
        Self::new(Operation::Barrier, None)
    }
}

fn length(operation: Operation, what: &'static str, want: usize, got: usize) -> Result<(), ShapeError> {
    expect(OpId(operation.name()), what, &[want], got)
}

/// There must be a count for each rank, and as many elements as the counts say.
fn parts(
    operation: Operation,
    ranks: usize,
    counts_name: &'static str,
    counts: &[usize],
    what: &'static str,
    elements: usize,
) -> Result<(), ShapeError> {
    length(operation, counts_name, ranks, counts.len())?;
    let total = counts.iter().try_fold(0_usize, |sum, &count| sum.checked_add(count));
    let total = total.ok_or(ShapeError::Overflow { op: OpId(operation.name()), what: counts_name })?;
    length(operation, what, total, elements)
}
