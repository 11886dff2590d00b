//! The MoE layers of a model, as the rest of the model sees them: rows in, rows out, wherever they run.

use anyhow::Result;
use moe_core::ops::AdamWSettings;
use ndarray::{Array2, ArrayView2};

/// What a layer's routing did in the last training step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// slots that chose each expert, before any was dropped
    pub counts: Vec<u32>,
    /// slots that no expert worked on
    pub dropped: u64,
    /// scores that were not finite
    pub non_finite: u64,
    /// value of the auxiliary loss, 0 without one
    pub auxiliary_loss: f64,
}

impl Figures {
    /// MaxVio: how far the fullest expert is above the even share, as a multiple of it. 0 is even.
    pub fn max_violation(&self) -> f64 {
        let total: f64 = self.counts.iter().map(|&count| f64::from(count)).sum();
        let most = f64::from(self.counts.iter().copied().max().unwrap_or(0));
        if total > 0.0 {
            most * self.counts.len() as f64 / total - 1.0
        } else {
            0.0
        }
    }

    /// Entropy of the load, as a share of its largest value. 1 is even, 0 is all in one expert.
    pub fn load_entropy(&self) -> f64 {
        let total: f64 = self.counts.iter().map(|&count| f64::from(count)).sum();
        let shares = self
            .counts
            .iter()
            .map(|&count| f64::from(count) / total)
            .filter(|&share| share > 0.0);
        let nats: f64 = shares.map(|share| -share * share.ln()).sum();
        if self.counts.len() > 1 {
            nats / (self.counts.len() as f64).ln()
        } else {
            1.0
        }
    }
}

/// A tensor for a checkpoint or from one.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// its full name
    pub name: String,
    /// element type
    pub dtype: safetensors::Dtype,
    /// lengths of its dimensions
    pub shape: Vec<usize>,
    /// its elements, little-endian, row-major
    pub bytes: Vec<u8>,
}

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

    /// Ends a training step: balances, and takes a step of AdamW.
    ///
    /// # Errors
    /// What the device says.
    fn update(&mut self, settings: &AdamWSettings) -> Result<()>;

    /// All that a resumed run needs: weights, expert bias, optimizer state.
    ///
    /// # Errors
    /// What the device says.
    fn state(&mut self) -> Result<Vec<Tensor>>;

    /// The opposite of [`state`](Blocks::state); other tensors among `tensors` are ignored.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape or type.
    fn load_state(&mut self, tensors: &[Tensor]) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(counts: &[u32]) -> Figures {
        Figures {
            counts: counts.to_vec(),
            ..Figures::default()
        }
    }

    #[test]
    fn an_even_load_has_no_violation_and_full_entropy() {
        assert_eq!(figures(&[7, 7, 7, 7]).max_violation(), 0.0);
        assert!((figures(&[7, 7, 7, 7]).load_entropy() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_collapsed_load_has_the_largest_violation_and_no_entropy() {
        assert_eq!(figures(&[0, 28, 0, 0]).max_violation(), 3.0);
        assert_eq!(figures(&[0, 28, 0, 0]).load_entropy(), 0.0);
    }
}
