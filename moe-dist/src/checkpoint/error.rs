//! What can be wrong with a checkpoint.

use moe_core::{BackendError, CollectiveError, DType};
use std::io;
use std::path::PathBuf;

/// A checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// the file
        path: PathBuf,
        /// what the system says
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// the file
        path: PathBuf,
        /// what is wrong with it
        problem: String,
    },
    /// A rank's file is not there.
    #[error("{} is missing: the manifest names it", .0.display())]
    MissingFile(PathBuf),
    /// A rank's file is there that the manifest does not name: files of two checkpoints are mixed.
    #[error("{} belongs to no rank that the manifest names: remove it if the checkpoint is whole without it", .0.display())]
    SurplusFile(PathBuf),
    /// No tensor of this name.
    #[error("{0}: is missing")]
    MissingTensor(String),
    /// A tensor that nobody has asked for.
    #[error("{0}: is no tensor of this model")]
    SurplusTensor(String),
    /// Part of a tensor is in no file.
    #[error("{name}: row {row} of {rows} is in no file (for experts' tensors a row is an expert)")]
    MissingRow {
        /// the tensor
        name: String,
        /// along its first dimension
        row: usize,
        /// length of that dimension
        rows: usize,
    },
    /// Part of a tensor is in two places, or outside it.
    #[error(
        "{name}: row {row} of {rows} is there twice, or does not exist (for experts' tensors a row is an expert)"
    )]
    SurplusRow {
        /// the tensor
        name: String,
        /// along its first dimension
        row: usize,
        /// length of that dimension
        rows: usize,
    },
    /// A tensor has another shape or type than the model's. For experts' tensors the first length is the number of experts.
    #[error("{name}: the checkpoint has {got_dtype} {got:?}, but {want_dtype} {want:?} is wanted")]
    Shape {
        /// the tensor
        name: String,
        /// shape wanted
        want: Vec<usize>,
        /// type wanted
        want_dtype: DType,
        /// shape in the checkpoint
        got: Vec<usize>,
        /// type in the checkpoint
        got_dtype: DType,
    },
    /// The caller's pieces do not go together.
    #[error("{name}: {problem}")]
    Piece {
        /// the tensor
        name: String,
        /// what is wrong
        problem: &'static str,
    },
    /// The device that holds a layer failed.
    #[error("a layer cannot be read or made")]
    Layer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another rank failed while a checkpoint was written.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

impl CheckpointError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }

    pub(super) fn layer<B: BackendError>(error: moe_core::Error<B>) -> Self {
        Self::Layer(Box::new(error))
    }

    pub(super) fn damaged(path: impl Into<PathBuf>, problem: impl ToString) -> Self {
        Self::Damaged { path: path.into(), problem: problem.to_string() }
    }
}
