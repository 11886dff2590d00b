//! What a run has seen so far, step by step, for the picture and for resuming.

use anyhow::Result;
use moe_core::{DType, Figures, StateTensor};
use moe_dist::checkpoint::{Checkpoint, Piece};

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

    /// The history as a checkpoint keeps it.
    pub fn pieces(&self) -> [Piece; 2] {
        let (loss, load) = (bytemuck::cast_slice(&self.loss), bytemuck::cast_slice(&self.load));
        let piece = |name: &str, shape: &[usize], dtype, bytes: &[u8]| {
            let (name, shape, bytes) = (name.to_owned(), shape.to_vec(), bytes.to_vec());
            Piece::whole(StateTensor { name, shape, dtype, bytes })
        };
        let shape = [self.steps(), self.layers, self.experts];
        [piece(LOSS, &shape[..1], DType::F32, loss), piece(LOAD, &shape, DType::U32, load)]
    }

    /// The history of `steps` steps from a checkpoint.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(layers: usize, experts: usize, steps: usize, checkpoint: &mut Checkpoint) -> Result<Self> {
        let mut read = |name, dtype, shape: &[usize]| {
            checkpoint.read(name, dtype, shape, std::iter::once(0..shape.iter().product()))
        };
        let loss = bytemuck::pod_collect_to_vec(&read(LOSS, DType::F32, &[steps])?);
        let load = bytemuck::pod_collect_to_vec(&read(LOAD, DType::U32, &[steps, layers, experts])?);
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
