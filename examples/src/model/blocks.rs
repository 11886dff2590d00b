//! The MoE layers of a model, as the rest of the model sees them: rows in, rows out, wherever they run.

use super::tensors::TensorMap;
use anyhow::Result;
use moe_core::Figures;
use moe_dist::checkpoint::{Checkpoint, Piece};
use ndarray::{Array2, ArrayView2};

/// A rank's share of a step's sequences. Its rows are parts of them, as cp and sequence parallelism split them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// sequences of this rank's share
    pub sequences: usize,
    /// tokens of a whole sequence
    pub length: usize,
    /// sequences of the whole step, over all ranks
    pub step_sequences: usize,
}

/// The MoE layers of one model. Layers are named by their index.
pub trait Blocks<R> {
    /// Output rows, for inference: leaves counts and balancing as they were.
    ///
    /// # Errors
    /// What the device says.
    fn forward(&mut self, layer: usize, x: ArrayView2<'_, R>, shape: &Shape) -> Result<Array2<R>>;

    /// Output rows, keeping what [`backward`](Blocks::backward) needs.
    ///
    /// # Errors
    /// What the device says.
    fn forward_train(&mut self, layer: usize, x: ArrayView2<'_, R>, shape: &Shape) -> Result<Array2<R>>;

    /// The gradient of the rows of the last `forward_train`, auxiliary losses included. The gradients of the
    /// weights stay on the device.
    ///
    /// # Errors
    /// What the device says.
    fn backward(&mut self, layer: usize, dy: ArrayView2<'_, R>) -> Result<Array2<R>>;

    /// What routing did in the last training step on all ranks, layer by layer.
    ///
    /// # Errors
    /// What the device or another rank says.
    fn figures(&mut self) -> Result<Vec<Figures>>;

    /// Sums the gradients over the ranks.
    ///
    /// # Errors
    /// What the device or another rank says.
    fn reduce(&mut self) -> Result<()>;

    /// The norm of the summed gradients over all ranks, with the squares `own` that this rank counts beside them.
    ///
    /// # Errors
    /// What the device or another rank says.
    fn grad_norm(&mut self, own: f64) -> Result<f64>;

    /// Ends a training step: balances, and takes a step of AdamW with all gradients times `scale`.
    ///
    /// # Errors
    /// What the device says.
    fn update(&mut self, lr: f64, scale: f64) -> Result<()>;

    /// What this rank keeps of all that a resumed run needs: weights, expert bias, optimizer state. Names of a layer's start with
    /// `layers.INDEX.`.
    ///
    /// # Errors
    /// What the device says.
    fn pieces(&mut self) -> Result<Vec<Piece>>;

    /// This rank's part of a checkpoint, whichever ranks wrote it.
    ///
    /// # Errors
    /// If a tensor is missing, or has another shape or type.
    fn load(&mut self, checkpoint: &mut Checkpoint) -> Result<()>;

    /// Takes over weights and expert bias alone. The optimizer starts anew.
    ///
    /// # Errors
    /// If a tensor is missing, or has another shape or type.
    fn load_weights(&mut self, tensors: &mut TensorMap) -> Result<()>;

    /// Adds the gradients by the names of the weights.
    ///
    /// # Errors
    /// What the device says.
    fn gradients(&mut self, tensors: &mut TensorMap) -> Result<()>;

    /// Bytes of each layer's gate.
    ///
    /// # Errors
    /// What the device says.
    fn gates(&mut self) -> Result<Vec<Vec<u8>>>;

    /// The bias on the selection of each expert of a layer; empty if the layer has none.
    ///
    /// # Errors
    /// What the device says.
    fn selection_bias(&mut self, layer: usize) -> Result<Vec<R>>;
}
