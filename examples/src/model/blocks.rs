//! The MoE layers of a model, as the rest of the model sees them: rows in, rows out, wherever they run.

use super::tensors::TensorMap;
use anyhow::Result;
use moe_core::Figures;
use ndarray::{Array2, ArrayView2};

/// The MoE layers of one model. Layers are named by their index.
pub trait Blocks<R> {
    /// Output rows, for inference: leaves counts and balancing as they were.
    ///
    /// # Errors
    /// What the device says.
    fn forward(&mut self, layer: usize, x: ArrayView2<'_, R>) -> Result<Array2<R>>;

    /// Output rows, keeping what [`backward`](Blocks::backward) needs. The rows are sequences of `length`.
    ///
    /// # Errors
    /// What the device says.
    fn forward_train(&mut self, layer: usize, x: ArrayView2<'_, R>, length: usize) -> Result<Array2<R>>;

    /// The gradient of the rows of the last `forward_train`, auxiliary losses included. The gradients of the
    /// weights stay on the device.
    ///
    /// # Errors
    /// What the device says.
    fn backward(&mut self, layer: usize, dy: ArrayView2<'_, R>) -> Result<Array2<R>>;

    /// What routing did in the last training step.
    ///
    /// # Errors
    /// What the device says.
    fn figures(&mut self, layer: usize) -> Result<Figures>;

    /// The sum of the squares of all gradients.
    ///
    /// # Errors
    /// What the device says.
    fn grad_squares(&mut self) -> Result<f64>;

    /// Ends a training step: balances, and takes a step of AdamW with all gradients times `scale`.
    ///
    /// # Errors
    /// What the device says.
    fn update(&mut self, lr: f64, scale: f64) -> Result<()>;

    /// Adds all that a resumed run needs: weights, expert bias, optimizer state. Those of a layer start with
    /// `layers.INDEX.`.
    ///
    /// # Errors
    /// What the device says.
    fn state(&mut self, tensors: &mut TensorMap) -> Result<()>;

    /// The opposite of [`state`](Blocks::state).
    ///
    /// # Errors
    /// If a tensor is missing, or has another shape or type.
    fn load_state(&mut self, tensors: &mut TensorMap) -> Result<()>;

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

    /// The bias on the selection of each expert of a layer; empty if the layer has none.
    ///
    /// # Errors
    /// What the device says.
    fn selection_bias(&mut self, layer: usize) -> Result<Vec<R>>;
}
