//! Errors: what was wanted, what was got, and what to do.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

/// Name of an op, as it stands in traces and errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub &'static str);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An argument of an op does not fit its dimensions. Found before a launch, without allocating.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A buffer has the wrong number of elements.
    #[error("{op}: `{what}` has {got} elements, wanted {want}")]
    Length {
        /// the op
        op: OpId,
        /// the argument
        what: &'static str,
        /// elements wanted
        want: usize,
        /// elements found
        got: usize,
    },
    /// A dimension is outside its range.
    #[error("{op}: `{what}` is {got}, but must be {min} to {max}")]
    Range {
        /// the op
        op: OpId,
        /// the dimension
        what: &'static str,
        /// smallest value allowed
        min: usize,
        /// largest value allowed
        max: usize,
        /// value found
        got: usize,
    },
    /// An index or offset in a buffer points outside. Only devices whose memory the host reads find this.
    #[error("{op}: `{what}[{at}]` is {got}, but must be at most {max}")]
    Value {
        /// the op
        op: OpId,
        /// the argument
        what: &'static str,
        /// where in the argument
        at: usize,
        /// largest value allowed
        max: usize,
        /// value found
        got: usize,
    },
    /// Two optional arguments do not go together, or one is missing.
    #[error("{op}: `{what}` {why}")]
    Combination {
        /// the op
        op: OpId,
        /// the argument
        what: &'static str,
        /// what is wrong with it
        why: &'static str,
    },
    /// The product of dimensions does not fit in memory.
    #[error("{op}: the size of `{what}` overflows")]
    Overflow {
        /// the op
        op: OpId,
        /// the argument
        what: &'static str,
    },
}

/// A field of a configuration is outside its range, or contradicts another.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field} is {got}, but {wanted}")]
pub struct ConfigError {
    /// the field's name
    pub field: &'static str,
    /// its value
    pub got: String,
    /// the rule that it breaks, with the range
    pub wanted: String,
}

/// Why a collective operation failed, so that callers can act without knowing the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveFault {
    /// The rank's own arguments do not go together.
    #[error("was called with wrong arguments")]
    Argument,
    /// The rank called another operation than the others, or with another shape or type.
    #[error("called something else than the others")]
    Mismatch,
    /// The rank did not answer in time.
    #[error("did not answer in time")]
    Deadline,
    /// The rank is gone, or the way to it is cut.
    #[error("is gone")]
    Lost,
    /// The rank closed the group by [`abort`](crate::Collective::abort).
    #[error("aborted the group")]
    Aborted,
    /// What came from the rank is not what a rank sends.
    #[error("sent what no rank sends")]
    Protocol,
    /// The rank's device failed.
    #[error("has a device that failed")]
    Device,
}

/// A collective operation failed. Every surviving rank gets the same cause.
#[derive(Debug, thiserror::Error)]
#[error("rank {rank} {fault}, in {op} {sequence} of group {group}")]
#[non_exhaustive]
pub struct CollectiveError {
    /// the group's name
    pub group: Cow<'static, str>,
    /// the rank that failed, as a rank of the group
    pub rank: usize,
    /// the operation
    pub op: &'static str,
    /// the group's count of operations so far
    pub sequence: u64,
    /// what went wrong
    pub fault: CollectiveFault,
    /// what happened below
    #[source]
    pub source: Option<Box<dyn core::error::Error + Send + Sync>>,
}

impl CollectiveError {
    /// For transports: `rank` failed in operation number `sequence` of `group`.
    pub fn new(
        group: impl Into<Cow<'static, str>>,
        rank: usize,
        op: &'static str,
        sequence: u64,
        fault: CollectiveFault,
    ) -> Self {
        Self { group: group.into(), rank, op, sequence, fault, source: None }
    }

    /// With what happened below.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn core::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The kind of a backend's error, so that callers can act without knowing the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A driver, library or device is not there or too old; the message says what to install.
    Unavailable,
    /// Memory ran out; nothing was changed.
    OutOfMemory,
    /// An argument does not fit.
    Shape,
    /// A buffer was used on a stream that it was not handed over to.
    Stream,
    /// The device does not do this.
    Unsupported,
    /// The device failed while it worked; the stream is lost.
    Fault,
}

/// The error of a backend: an open type with a closed [`kind`](BackendError::kind).
pub trait BackendError: core::error::Error + Send + Sync + 'static {
    /// What sort of failure this is.
    fn kind(&self) -> ErrorKind;
}

/// Everything that a layer can fail with on a device with errors `B`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error<B: BackendError> {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A buffer or a dimension does not fit.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Weights were being changed when an error came; run a successful `update` first.
    #[error("the layer's weights are stale: an update failed half way; run `update` again")]
    Stale,
    /// More work than the runner was sized for.
    #[error("{what} is {got}, but the runner was sized for at most {limit}")]
    Limit {
        /// what is too large
        what: &'static str,
        /// its size
        got: usize,
        /// the runner's limit
        limit: usize,
    },
    /// The call does not fit the state of its arguments.
    #[error("{0}")]
    State(&'static str),
    /// A saved tensor is missing, surplus, or of another shape or type.
    #[error("{name}: {problem}")]
    Checkpoint {
        /// the tensor
        name: String,
        /// what is wrong with it
        problem: String,
    },
    /// A failure that a test asked for.
    #[error("{0}: injected fault")]
    Injected(OpId),
    /// Another rank or the way to it failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The device failed.
    #[error("{0}")]
    Device(#[source] B),
}

/// `buffer` must have exactly the product of `dims` elements.
///
/// # Errors
/// [`ShapeError`] with the op's and the argument's name.
pub fn expect(op: OpId, what: &'static str, dims: &[usize], got: usize) -> Result<(), ShapeError> {
    let want = product(op, what, dims)?;
    if want == got { Ok(()) } else { Err(ShapeError::Length { op, what, want, got }) }
}

/// The product of `dims`.
///
/// # Errors
/// [`ShapeError::Overflow`] if it does not fit in `isize`.
pub fn product(op: OpId, what: &'static str, dims: &[usize]) -> Result<usize, ShapeError> {
    let mut product: usize = 1;
    for dim in dims {
        product = product.checked_mul(*dim).ok_or(ShapeError::Overflow { op, what })?;
    }
    if product > isize::MAX as usize / 16 { Err(ShapeError::Overflow { op, what }) } else { Ok(product) }
}

/// `got` must lie in `min..=max`.
///
/// # Errors
/// [`ShapeError::Range`] otherwise.
pub fn within(op: OpId, what: &'static str, min: usize, max: usize, got: usize) -> Result<(), ShapeError> {
    if (min..=max).contains(&got) { Ok(()) } else { Err(ShapeError::Range { op, what, min, max, got }) }
}

/// `offsets` must start at 0, ascend, and end at `rows` at most.
///
/// # Errors
/// [`ShapeError::Value`] at the first offset that does not.
pub fn check_offsets(op: OpId, offsets: &[u32], rows: usize) -> Result<(), ShapeError> {
    let mut least = 0;
    for (at, &offset) in offsets.iter().enumerate() {
        if offset < least || offset as usize > rows || (at == 0 && offset != 0) {
            let max = if at == 0 { 0 } else { rows };
            return Err(ShapeError::Value { op, what: "offsets", at, max, got: offset as usize });
        }
        least = offset;
    }
    Ok(())
}

/// Every entry of `index` must be less than `bound`.
///
/// # Errors
/// [`ShapeError::Value`] at the first entry that is not.
pub fn check_index(op: OpId, what: &'static str, index: &[u32], bound: usize) -> Result<(), ShapeError> {
    match index.iter().position(|&entry| entry as usize >= bound) {
        None => Ok(()),
        Some(at) => {
            Err(ShapeError::Value { op, what, at, max: bound.saturating_sub(1), got: index[at] as usize })
        }
    }
}
