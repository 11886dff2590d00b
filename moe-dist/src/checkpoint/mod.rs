//! Sharded checkpoints: a folder with one safetensors file per rank and a manifest, saved on one mesh and loaded on any other,
//! bit for bit.
//!
//! ```text
//! step-000200/manifest.json               files with their lengths and checksums, and what the caller has to remember
//! step-000200/rank-00000.safetensors      what rank 0 keeps: parts of tensors
//! step-000200/rank-00001.safetensors      ...
//! ```
//!
//! Each element of each tensor is in exactly one file. A file says of each of its parts, in its header, which stretches of the whole
//! tensor they are, so that a reader need not know the mesh that wrote it. Holes, overlaps, and files that are missing, torn or too many are
//! typed errors.
//!
//! Ranks write beside the final place; when all have finished, rank 0 adds the manifest and renames the folder. A run that is
//! stopped in between leaves no checkpoint or a whole one. All ranks must see the folder.

mod error;
mod layer;
mod manifest;
mod read;
mod runs;
mod shards;
mod write;

pub use error::CheckpointError;
pub use layer::{LayerParts, load_layer, save_layer};
pub use read::Checkpoint;
pub use shards::{load_shards, save_shards};
pub use write::write;

use moe_core::{DType, MoeLayer, StateTensor};
use safetensors::Dtype;
use std::ops::Range;

/// Part of a tensor, or all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// name in the checkpoint, shape of this part, type and bytes
    pub tensor: StateTensor,
    /// shape of the whole tensor
    pub whole: Vec<usize>,
    /// where the elements stand in the whole, which is row-major, in their order
    pub runs: Vec<Range<usize>>,
}

impl Piece {
    /// A whole tensor.
    pub fn whole(tensor: StateTensor) -> Self {
        let whole = tensor.shape.clone();
        // One run of nothing is no run.
        let runs = Some(0..elements(&whole)).filter(|run| !run.is_empty()).into_iter().collect();
        Self { tensor, whole, runs }
    }
}

/// A layer, and what belongs to its optimizer.
type Loaded<D, T, O> = Result<(MoeLayer<D, T>, O), CheckpointError>;

/// Elements of a shape.
fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// The element types that a state can have, and the file format's names for them.
const DTYPES: [(DType, Dtype); 5] = [
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
    (DType::Bf16, Dtype::BF16),
    (DType::F16, Dtype::F16),
    (DType::U32, Dtype::U32),
];
