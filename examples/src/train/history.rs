//! What a run has seen so far, step by step, for the picture and for resuming.

use crate::model::tensors::TensorMap;
use anyhow::Result;
use moe_core::Figures;

const LOSS: &str = "history.loss";
const LOAD: &str = "history.load";

/// The course of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// training loss of each step, in nats
    pub loss: Vec<f32>,
    /// tokens of each expert of each layer in each step: (steps, layers, experts), row-major
    pub load: Vec<u32>,
    /// number of layers
    pub layers: usize,
    /// number of experts of a layer
    pub experts: usize,
}

impl History {
    /// Nothing seen yet.
    pub fn new(layers: usize, experts: usize) -> Self {
        Self { layers, experts, ..Self::default() }
    }

    /// Appends a step.
    pub fn push(&mut self, loss: f64, layers: &[Figures]) {
        self.loss.push(loss as f32);
        self.load.extend(layers.iter().flat_map(|figures| &figures.tokens_per_expert));
    }

    /// Adds the history to a checkpoint's tensors.
    pub fn save(&self, tensors: &mut TensorMap) {
        tensors.insert_values(LOSS, &[self.steps()], &self.loss);
        tensors.insert_values(LOAD, &[self.steps(), self.layers, self.experts], &self.load);
    }

    /// The history of `steps` steps from a checkpoint's tensors.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(layers: usize, experts: usize, steps: usize, tensors: &mut TensorMap) -> Result<Self> {
        let loss = tensors.take_values(LOSS, &[steps])?;
        let load = tensors.take_values(LOAD, &[steps, layers, experts])?;
        Ok(Self { loss, load, layers, experts })
    }

    /// Steps seen.
    pub fn steps(&self) -> usize {
        self.loss.len()
    }

    /// An expert's share of a layer's load over the steps `from..to`, as a multiple of the even share.
    pub fn relative_load(&self, layer: usize, expert: usize, from: usize, to: usize) -> f64 {
        let tokens = |step: usize, expert: usize| {
            f64::from(self.load[(step * self.layers + layer) * self.experts + expert])
        };
        let own: f64 = (from..to).map(|step| tokens(step, expert)).sum();
        let all: f64 = (from..to).flat_map(|step| (0..self.experts).map(move |e| tokens(step, e))).sum();
        if all > 0.0 { own * self.experts as f64 / all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_even_share_is_1() {
        let mut history = History::new(2, 4);
        let layer = |counts: [u32; 4]| Figures { tokens_per_expert: counts.to_vec(), ..Figures::default() };
        history.push(3.0, &[layer([5; 4]), layer([20, 0, 0, 0])]);
        history.push(2.0, &[layer([5; 4]), layer([0, 20, 0, 0])]);
        assert_eq!(history.steps(), 2);
        assert_eq!(history.relative_load(0, 3, 0, 2), 1.0);
        assert_eq!(history.relative_load(1, 0, 0, 1), 4.0);
        assert_eq!(history.relative_load(1, 0, 0, 2), 2.0);
    }
}
