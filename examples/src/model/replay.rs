//! A training run on given weights and given batches, step by step, to compare with another program's.
//!
//! The model has no mixing, and names its tensors as the reference data do: `embed.weight`, `head.weight`,
//! `norm.weight`, and per layer `layers.I.norm.weight`, `layers.I.gate.weight`, `layers.I.w1`, `.w2`, `.w3`.

use super::device_blocks::{BlocksConfig, DeviceBlocks};
use super::tensors::TensorMap;
use super::{Model, ModelConfig};
use crate::real::Real;
use crate::text::Batch;
use anyhow::{Result, ensure};
use moe_core::{Balance, BalanceLoss, MoeConfig, MoeDevice, Scalar, Sizes};
use ndarray::Array2;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayConfig {
    /// sizes of the MoE layers
    pub sizes: Sizes,
    /// number of layers
    pub layers: usize,
    /// added to the mean square in norms
    pub epsilon: f64,
    /// coefficient of the sequence-wise loss
    pub sequence_loss: f32,
    /// step of the selection bias
    pub bias_rate: f32,
    /// learning rate, the same in every step
    pub lr: f64,
    /// largest norm of the gradient; 0 for no limit
    pub clip: f64,
    /// sequences of a batch
    pub sequences: usize,
    /// bytes of a sequence
    pub length: usize,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayStep {
    /// mean cross-entropy in nats, without auxiliary losses
    pub loss: f64,
    /// auxiliary loss of each layer
    pub auxiliary: Vec<f64>,
    /// norm of all gradients, before clipping
    pub grad_norm: f64,
    /// slots of each expert of each layer
    pub counts: Vec<Vec<u32>>,
    /// selection bias of each expert of each layer, after the step
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
        let ReplayConfig { sizes, layers, epsilon, .. } = *config;
        let mut moe = MoeConfig::new(sizes)?;
        moe.selection_bias = true;
        let loss = Some(BalanceLoss::Sequence(config.sequence_loss));
        moe.balance = Balance { loss, bias_rate: config.bias_rate, ..Balance::default() };
        let blocks = BlocksConfig {
            moe,
            layers,
            max_tokens: config.sequences * config.length,
            max_sequences: config.sequences,
            seed: 0,
        };
        let blocks = Box::new(DeviceBlocks::<D, T>::init(device, &blocks)?);
        let dense = ModelConfig { layers, width: sizes.width, mixing: false, epsilon };
        let mut model = Model::init(&dense, 0, blocks);
        for layer in 0..layers {
            join::<T>(weights, layer, sizes)?;
        }
        model.load_weights(weights)?;
        Ok(Self { config: *config, model })
    }

    /// The next step, on rows (sequences, length + 1) of bytes.
    ///
    /// # Errors
    /// If the rows have another shape, or the device fails.
    pub fn step(&mut self, rows: &Array2<u8>) -> Result<ReplayStep> {
        let ReplayConfig { sizes, layers, lr, clip, sequences, length, .. } = self.config;
        let wanted = (sequences, length + 1);
        ensure!(rows.dim() == wanted, "the batch is {:?}, but {wanted:?} is wanted", rows.dim());
        let loss = self.model.forward_backward(&Batch::new(rows))?;
        let grad_norm = self.model.grad_norm()?;
        let figures = self.model.figures()?;
        let mut gradients = self.model.gradients()?;
        for layer in 0..layers {
            split::<R>(&mut gradients, layer, sizes)?;
        }
        let scale = if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        self.model.update(lr, scale)?;
        let mut bias = Vec::with_capacity(layers);
        for layer in 0..layers {
            let values = self.model.blocks().selection_bias(layer)?;
            bias.push(values.into_iter().map(R::to_f64).collect());
        }
        Ok(ReplayStep {
            loss,
            auxiliary: figures.iter().map(|figures| figures.balance_loss).collect(),
            grad_norm,
            counts: figures.into_iter().map(|figures| figures.tokens_per_expert).collect(),
            bias,
            gradients,
        })
    }
}

/// Turns a layer's reference tensors into those of the layer: w1 above w3 in w13, and a bias of zeros.
fn join<T: Scalar>(tensors: &mut TensorMap, layer: usize, sizes: Sizes) -> Result<()> {
    let Sizes { width, hidden, experts, .. } = sizes;
    let name = |name: &str| format!("layers.{layer}.{name}");
    let (up, down) = ([experts, hidden, width], [experts, width, hidden]);
    let gate = tensors.take_values::<T>(&name("gate.weight"), &[experts, width])?;
    let w1 = tensors.take_values::<T>(&name("w1"), &up)?;
    let w3 = tensors.take_values::<T>(&name("w3"), &up)?;
    let w2 = tensors.take_values::<T>(&name("w2"), &down)?;
    let halves = w1.chunks(hidden * width).zip(w3.chunks(hidden * width));
    let w13: Vec<T> = halves.flat_map(|(w1, w3)| [w1, w3]).flatten().copied().collect();
    tensors.insert_values(name("moe.gate"), &[experts, width], &gate);
    tensors.insert_values(name("moe.w13"), &[experts, 2 * hidden, width], &w13);
    tensors.insert_values(name("moe.w2"), &down, &w2);
    tensors.insert_values(name("moe.selection_bias"), &[experts], &vec![T::Acc::default(); experts]);
    Ok(())
}

/// The opposite of [`join`], for gradients.
fn split<R: Real>(tensors: &mut TensorMap, layer: usize, sizes: Sizes) -> Result<()> {
    let Sizes { width, hidden, experts, .. } = sizes;
    let name = |name: &str| format!("layers.{layer}.{name}");
    let down = [experts, width, hidden];
    let gate = tensors.take_values::<R>(&name("moe.gate"), &[experts, width])?;
    let w13 = tensors.take_values::<R>(&name("moe.w13"), &[experts, 2 * hidden, width])?;
    let w2 = tensors.take_values::<R>(&name("moe.w2"), &down)?;
    let half = |which: usize| -> Vec<R> {
        w13.chunks(hidden * width).skip(which).step_by(2).flatten().copied().collect()
    };
    tensors.insert_values(name("gate.weight"), &[experts, width], &gate);
    tensors.insert_values(name("w1"), &[experts, hidden, width], &half(0));
    tensors.insert_values(name("w3"), &[experts, hidden, width], &half(1));
    tensors.insert_values(name("w2"), &down, &w2);
    Ok(())
}
