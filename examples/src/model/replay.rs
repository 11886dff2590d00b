//! A training run on given weights and given batches, step by step, to compare with another program's.
//!
//! The model has no mixing. Its tensors are `embed.weight`, `head.weight`, `norm.weight`, and per layer
//! `layers.I.norm.weight` and `layers.I.moe.NAME`, with the names and shapes of [`MoeConfig::tensors`].

use super::device_blocks::{BlocksConfig, DeviceBlocks};
use super::tensors::TensorMap;
use super::{Model, ModelConfig, VOCABULARY};
use crate::ranks::Ranks;
use crate::real::Real;
use crate::text::Batch;
use anyhow::{Result, ensure};
use moe_core::{AdamWOptions, MoeConfig, MoeDevice, Scalar};
use ndarray::Array2;
use std::sync::Arc;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayConfig {
    /// every MoE layer
    pub moe: MoeConfig,
    /// number of different tokens, at most [`VOCABULARY`]
    pub vocabulary: usize,
    /// number of layers
    pub layers: usize,
    /// added to the mean square in norms
    pub epsilon: f64,
    /// learning rate, the same in every step
    pub lr: f64,
    /// what else the optimizer needs
    pub adam: AdamWOptions,
    /// largest norm of the gradient; 0 for no limit
    pub clip: f64,
    /// sequences of a batch
    pub sequences: usize,
    /// tokens of a sequence
    pub length: usize,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayStep {
    /// mean cross-entropy in nats, without auxiliary losses
    pub loss: f64,
    /// load-balancing loss of each layer
    pub balance_loss: Vec<f64>,
    /// z-loss of each layer
    pub z_loss: Vec<f64>,
    /// norm of all gradients, before clipping
    pub grad_norm: f64,
    /// slots of each expert of each layer
    pub counts: Vec<Vec<u32>>,
    /// selection bias of each expert of each layer, after the step; empty without one
    pub bias: Vec<Vec<f64>>,
    /// gradients of the losses together, before clipping
    pub gradients: TensorMap,
}

/// The run.
pub struct Replay<R> {
    config: ReplayConfig,
    model: Model<R>,
}

impl<R: Real> Replay<R> {
    /// A run from these weights on. Takes them out of `weights`.
    ///
    /// # Errors
    /// If a weight is missing or has another shape or type, the configuration is wrong, or the device fails.
    pub fn new<D: MoeDevice<T>, T: Scalar<Acc = R>>(
        device: &D,
        config: &ReplayConfig,
        weights: &mut TensorMap,
    ) -> Result<Self> {
        let ReplayConfig { moe, vocabulary, layers, epsilon, adam, .. } = *config;
        ensure!(vocabulary <= VOCABULARY, "{vocabulary} tokens do not fit in a byte");
        let blocks = BlocksConfig {
            moe,
            layers,
            max_tokens: config.sequences * config.length,
            max_sequences: config.sequences,
            seed: 0,
            adam,
            sharded: false,
        };
        let ranks = Arc::new(Ranks::alone()?);
        let blocks = Box::new(DeviceBlocks::<D, T>::init(device, &blocks, &ranks)?);
        let dense = ModelConfig { vocabulary, layers, width: moe.width, mixing: false, epsilon, adam };
        let mut model = Model::init(&dense, 0, blocks, &ranks)?;
        model.load_weights(weights)?;
        Ok(Self { config: *config, model })
    }

    /// The next step, on rows (sequences, length + 1) of tokens.
    ///
    /// # Errors
    /// If the rows have another shape or a token is not in the vocabulary, or the device fails.
    pub fn step(&mut self, rows: &Array2<u8>) -> Result<ReplayStep> {
        let ReplayConfig { vocabulary, layers, lr, clip, sequences, length, .. } = self.config;
        let wanted = (sequences, length + 1);
        ensure!(rows.dim() == wanted, "the batch is {:?}, but {wanted:?} is wanted", rows.dim());
        let largest = rows.iter().copied().max().unwrap_or(0);
        ensure!(usize::from(largest) < vocabulary, "token {largest} is none of {vocabulary}");
        let loss = self.model.forward_backward(&Batch::new(rows))?;
        self.model.reduce()?;
        let grad_norm = self.model.grad_norm()?;
        let figures = self.model.figures()?;
        let gradients = self.model.gradients()?;
        let scale = if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.model.update(lr, scale)?;
        let mut bias = Vec::with_capacity(layers);
        for layer in 0..layers {
            let values = self.model.blocks().selection_bias(layer)?;
            bias.push(values.into_iter().map(R::to_f64).collect());
        }
        Ok(ReplayStep {
            loss,
            balance_loss: figures.iter().map(|figures| figures.balance_loss).collect(),
            z_loss: figures.iter().map(|figures| figures.z_loss).collect(),
            grad_norm,
            counts: figures.into_iter().map(|figures| figures.tokens_per_expert).collect(),
            bias,
            gradients,
        })
    }

    /// The weights, and beside them the selection biases and the optimizer's state.
    ///
    /// # Errors
    /// What the device says.
    pub fn state(&mut self) -> Result<TensorMap> {
        let mut tensors = TensorMap::default();
        self.model.pieces()?.into_iter().for_each(|piece| tensors.insert(piece.tensor));
        Ok(tensors)
    }
}
