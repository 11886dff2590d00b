//! A byte-level language model whose feed-forward blocks are MoE layers.
//!
//! ```text
//! x = embed[byte]
//! per layer:  x = x + mixing(x)             optional, see [`Mixing`]
//!             x = x + moe(rmsnorm(x))       on the device
//! logits = rmsnorm(x) * head^T
//! ```
//!
//! The loss is the mean cross-entropy of the next byte. The dense parts run on the host. Over many ranks the tokens of a batch are split
//! among them, and the dense parts are whole on each: their gradients are summed, and all take the same step.

pub mod blocks;
pub mod device_blocks;
pub mod parameters;
pub mod replay;
mod rows;
mod state;
pub mod storage;
mod sums;
pub mod tensors;

use crate::dense::loss::cross_entropy;
use crate::dense::mixing::{Mixing, SavedMixing};
use crate::dense::norm::{RmsNorm, SavedNorm};
use crate::dense::param::{Flat, Matrix};
use crate::dense::{embed, linear};
use crate::ranks::Ranks;
use crate::real::Real;
use crate::rng::Rng;
use crate::text::Batch;
use anyhow::Result;
use blocks::{Blocks, Shape};
use moe_core::ops::AdamWSettings;
use moe_core::{AdamWOptions, Figures};
use ndarray::{Array2, ArrayView2};
use rows::Rows;
use sums::Sums;

/// Number of different bytes.
pub const VOCABULARY: usize = 256;

/// The sizes of the dense parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// number of different tokens, at most [`VOCABULARY`]
    pub vocabulary: usize,
    /// number of layers
    pub layers: usize,
    /// length of a token's row
    pub width: usize,
    /// whether layers mix over the past
    pub mixing: bool,
    /// added to the mean square in norms
    pub epsilon: f64,
    /// what stays the same in every step of the optimizer
    pub adam: AdamWOptions,
}

/// The model with its optimizer.
pub struct Model<R> {
    embed: Matrix<R>,
    layers: Vec<Layer<R>>,
    norm: RmsNorm<R>,
    head: Matrix<R>,
    blocks: Box<dyn Blocks<R>>,
    sums: Sums<R>,
    rows: Rows,
    adam: AdamWOptions,
    step: u64,
}

struct Layer<R> {
    mixing: Option<Mixing<R>>,
    norm: RmsNorm<R>,
}

struct SavedLayer<R> {
    mixing: Option<SavedMixing<R>>,
    norm: SavedNorm<R>,
}

impl<R: Real> Model<R> {
    /// Random dense weights around the given MoE layers.
    ///
    /// # Errors
    /// None for the ranks that the layers were made for.
    pub fn init(config: &ModelConfig, seed: u64, blocks: Box<dyn Blocks<R>>, ranks: &Ranks) -> Result<Self> {
        let rng = &mut Rng::new(seed, 0);
        let ModelConfig { vocabulary, width, .. } = *config;
        let out_scale = 1.0 / (2.0 * config.layers as f64).sqrt();
        let layers = (0..config.layers)
            .map(|_| Layer {
                mixing: config.mixing.then(|| Mixing::init(width, config.epsilon, out_scale, rng)),
                norm: RmsNorm::new(width, config.epsilon),
            })
            .collect();
        Ok(Self {
            embed: Matrix::normal((vocabulary, width), 0.5, rng),
            layers,
            norm: RmsNorm::new(width, config.epsilon),
            head: Matrix::normal((vocabulary, width), 0.5 / (width as f64).sqrt(), rng),
            blocks,
            sums: Sums::new(ranks)?,
            rows: Rows::new(ranks)?,
            adam: config.adam,
            step: 0,
        })
    }

    /// Updates done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The MoE layers.
    pub fn blocks(&mut self) -> &mut dyn Blocks<R> {
        self.blocks.as_mut()
    }

    /// What routing did in the last training step on all ranks, layer by layer.
    ///
    /// # Errors
    /// What the device or another rank says.
    pub fn figures(&mut self) -> Result<Vec<Figures>> {
        self.blocks.figures()
    }

    /// Mean loss of a step's batch in nats, of which each rank is given its share, for evaluation: changes nothing.
    ///
    /// # Errors
    /// What the device or another rank says.
    pub fn loss(&mut self, batch: &Batch) -> Result<f64> {
        let (shape, [inputs, targets]) = self.own(batch);
        let mut x = embed::forward(&self.embed, &inputs);
        for (index, layer) in self.layers.iter().enumerate() {
            if let Some(mixing) = &layer.mixing {
                let whole = self.rows.gathered(x.view(), &shape)?;
                x += &self.rows.own_rows(mixing.forward(whole.view(), shape.length).0, &shape);
            }
            let (n, _) = layer.norm.forward(x.view());
            x += &self.blocks.forward(index, n.view(), &shape)?;
        }
        let (n, _) = self.norm.forward(x.view());
        let mut logits = linear::forward(n.view(), self.head.value.view());
        self.sums.total(cross_entropy(&mut logits, &targets, batch.step_tokens()))
    }

    /// The shape of a batch, and this rank's inputs and targets of it.
    fn own(&self, batch: &Batch) -> (Shape, [Vec<u8>; 2]) {
        let (sequences, length) = batch.inputs.dim();
        let shape = Shape { sequences, length, step_sequences: batch.step_sequences };
        (shape, [&batch.inputs, &batch.targets].map(|rows| self.rows.own(bytes(rows), &shape)))
    }

    /// Mean loss of a step's batch in nats, of which each rank is given its share, without auxiliary losses. Adds this rank's part of the
    /// gradients of the loss with auxiliary losses to those of all weights.
    ///
    /// # Errors
    /// What the device or another rank says.
    pub fn forward_backward(&mut self, batch: &Batch) -> Result<f64> {
        let (shape, [inputs, targets]) = self.own(batch);
        let mut x = embed::forward(&self.embed, &inputs);
        let mut saved = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let mut mixing = None;
            if let Some(layer) = &layer.mixing {
                let whole = self.rows.gathered(x.view(), &shape)?;
                let (out, saved) = layer.forward(whole.view(), shape.length);
                x += &self.rows.own_rows(out, &shape);
                mixing = Some(saved);
            }
            let (n, norm) = layer.norm.forward(x.view());
            x += &self.blocks.forward_train(index, n.view(), &shape)?;
            saved.push(SavedLayer { mixing, norm });
        }
        let (loss, dx) = self.head_forward_backward(x.view(), &targets, batch.step_tokens());
        self.backward(&inputs, saved, dx, &shape)?;
        self.sums.total(loss)
    }

    /// Sums all gradients over the ranks, once per step.
    ///
    /// # Errors
    /// What another rank says.
    pub fn reduce(&mut self) -> Result<()> {
        let mut sums = self.sums.take();
        self.visit(&mut |_, param| sums.push(param.grad));
        sums.reduce()?;
        self.visit(&mut |_, param| sums.pop(param.grad));
        self.sums = sums;
        self.blocks.reduce()
    }

    /// The loss at the end of the last layer, and the gradient of the rows there.
    fn head_forward_backward(
        &mut self,
        x: ArrayView2<'_, R>,
        targets: &[u8],
        step_tokens: usize,
    ) -> (f64, Array2<R>) {
        let (n, norm) = self.norm.forward(x);
        let mut logits = linear::forward(n.view(), self.head.value.view());
        let loss = cross_entropy(&mut logits, targets, step_tokens);
        linear::weight_gradient(logits.view(), n.view(), &mut self.head.grad);
        let dn = linear::input_gradient(logits.view(), self.head.value.view());
        (loss, self.norm.backward(&norm, dn.view()))
    }

    fn backward(
        &mut self,
        inputs: &[u8],
        saved: Vec<SavedLayer<R>>,
        mut dx: Array2<R>,
        shape: &Shape,
    ) -> Result<()> {
        for (index, (layer, saved)) in self.layers.iter_mut().zip(saved).enumerate().rev() {
            let dn = self.blocks.backward(index, dx.view())?;
            dx += &layer.norm.backward(&saved.norm, dn.view());
            if let (Some(mixing), Some(saved)) = (&mut layer.mixing, &saved.mixing) {
                let all = mixing.backward(saved, self.rows.alone(dx.view(), shape).view());
                dx += &self.rows.summed(all, shape)?;
            }
        }
        embed::backward(&mut self.embed, inputs, dx.view());
        Ok(())
    }

    /// The norm of all gradients together, over all ranks, after they have been summed.
    ///
    /// # Errors
    /// What the device or another rank says.
    pub fn grad_norm(&mut self) -> Result<f64> {
        let mut squares = 0.0;
        self.visit(&mut |_, param| squares += param.grad_squares());
        // The dense parts are equal on all ranks.
        self.blocks.grad_norm(if self.sums.is_first() { squares } else { 0.0 })
    }

    /// Ends a step: balances the MoE layers, and takes a step of AdamW with all gradients times `scale`.
    ///
    /// # Errors
    /// What the device says.
    pub fn update(&mut self, lr: f64, scale: f64) -> Result<()> {
        self.step += 1;
        let AdamWOptions { beta1, beta2, eps, weight_decay } = self.adam;
        let settings = AdamWSettings { lr, beta1, beta2, eps, weight_decay, step: self.step, scale };
        self.blocks.update(lr, scale)?;
        let mut result = Ok(());
        self.visit(&mut |_, param| {
            if let Err(error) = param.adamw(&settings) {
                result = Err(error.into());
            }
        });
        result
    }

    /// Calls `f` with the name and the slices of every dense parameter.
    pub fn visit(&mut self, f: &mut dyn FnMut(&str, Flat<'_, R>)) {
        f("embed.weight", self.embed.flat());
        for (index, layer) in self.layers.iter_mut().enumerate() {
            if let Some(mixing) = &mut layer.mixing {
                mixing.visit(&mut |name, param| f(&format!("layers.{index}.mixing.{name}"), param));
            }
            f(&format!("layers.{index}.norm.weight"), layer.norm.weight.flat());
        }
        f("norm.weight", self.norm.weight.flat());
        f("head.weight", self.head.flat());
    }
}

/// The bytes of a batch, sequence after sequence.
fn bytes(rows: &Array2<u8>) -> Vec<u8> {
    rows.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::expect_gradient;
    use device_blocks::{BlocksConfig, DeviceBlocks};
    use moe_core::{Balance, BalanceLoss, Host, MoeConfig, Sizes};
    use ndarray::Array1;

    const LAYERS: usize = 2;

    /// A small model in f64 and a batch of 3 sequences of 4 bytes. The auxiliary loss takes part.
    fn small() -> (Model<f64>, Batch) {
        let mut moe = MoeConfig::new(Sizes { width: 6, hidden: 5, experts: 4, top_k: 2 }).unwrap();
        moe.balance = Balance { loss: Some(BalanceLoss::Sequence(0.1)), ..Balance::default() };
        let adam = AdamWOptions::default();
        let blocks = BlocksConfig {
            moe,
            layers: LAYERS,
            max_tokens: 12,
            max_sequences: 3,
            seed: 1,
            adam,
            sharded: false,
        };
        let ranks = std::sync::Arc::new(Ranks::alone().unwrap());
        let blocks = Box::new(DeviceBlocks::<Host, f64>::init(&Host, &blocks, &ranks).unwrap());
        let config =
            ModelConfig { vocabulary: 256, layers: LAYERS, width: 6, mixing: true, epsilon: 1e-5, adam };
        let rows = Array2::from_shape_fn((3, 5), |(row, at)| b"a fine batch, it is"[4 * row + at]);
        (Model::init(&config, 2, blocks, &ranks).unwrap(), Batch::new(&rows))
    }

    /// The loss that the gradients are of.
    fn objective(model: &mut Model<f64>, batch: &Batch) -> f64 {
        let loss = model.forward_backward(batch).unwrap();
        loss + model.figures().unwrap().iter().map(|figures| figures.balance_loss).sum::<f64>()
    }

    #[test]
    fn every_gradient_is_that_of_finite_differences() {
        let (mut model, batch) = small();
        model.forward_backward(&batch).unwrap();
        let mut params = Vec::new();
        model.visit(&mut |name, param| {
            // The tables' rows from ' ' to '.' and from 'a' to 'c' say as much as all 256.
            let part = |slice: &[f64]| match name {
                "embed.weight" | "head.weight" => [&slice[32 * 6..47 * 6], &slice[97 * 6..100 * 6]].concat(),
                _ => slice.to_vec(),
            };
            params.push((name.to_owned(), Array1::from(part(param.value)), Array1::from(part(param.grad))));
        });
        assert_eq!(params.len(), 3 + LAYERS * 7);
        for (wanted, value, grad) in params {
            expect_gradient(&wanted, &value, &grad, |moved| {
                let moved = moved.to_vec();
                model.visit(&mut |name, param| match name {
                    _ if name != wanted => {}
                    "embed.weight" | "head.weight" => {
                        param.value[32 * 6..47 * 6].copy_from_slice(&moved[..15 * 6]);
                        param.value[97 * 6..100 * 6].copy_from_slice(&moved[15 * 6..]);
                    }
                    _ => param.value.copy_from_slice(&moved),
                });
                objective(&mut model, &batch)
            });
        }
    }
}
