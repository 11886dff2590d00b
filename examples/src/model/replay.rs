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
use moe_core::{AdamWOptions, MoeConfig, MoeDevice, Scalar};
use ndarray::Array2;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReplayConfig {
    /// every MoE layer
    pub moe: MoeConfig,
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
    /// bytes of a sequence
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
        let ReplayConfig { moe, layers, epsilon, adam, .. } = *config;
        let blocks = BlocksConfig {
            moe,
            layers,
            max_tokens: config.sequences * config.length,
            max_sequences: config.sequences,
            seed: 0,
            adam,
        };
        let blocks = Box::new(DeviceBlocks::<D, T>::init(device, &blocks)?);
        let dense = ModelConfig { layers, width: moe.width, mixing: false, epsilon, adam };
        let mut model = Model::init(&dense, 0, blocks);
        for layer in 0..layers {
            join::<T>(weights, layer, &moe)?;
        }
        model.load_weights(weights)?;
        Ok(Self { config: *config, model })
    }

    /// The next step, on rows (sequences, length + 1) of bytes.
    ///
    /// # Errors
    /// If the rows have another shape, or the device fails.
    pub fn step(&mut self, rows: &Array2<u8>) -> Result<ReplayStep> {
        let ReplayConfig { moe, layers, lr, clip, sequences, length, .. } = self.config;
        let wanted = (sequences, length + 1);
        ensure!(rows.dim() == wanted, "the batch is {:?}, but {wanted:?} is wanted", rows.dim());
        let loss = self.model.forward_backward(&Batch::new(rows))?;
        let grad_norm = self.model.grad_norm()?;
        let figures = self.model.figures()?;
        let mut gradients = self.model.gradients()?;
        for layer in 0..layers {
            split::<R>(&mut gradients, layer, &moe)?;
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
            balance_loss: figures.iter().map(|figures| figures.balance_loss).collect(),
            z_loss: figures.iter().map(|figures| figures.z_loss).collect(),
            grad_norm,
            counts: figures.into_iter().map(|figures| figures.tokens_per_expert).collect(),
            bias,
            gradients,
        })
    }
}

/// Turns a layer's reference tensors into those of the layer: w1 above w3 in w13, and a bias of zeros.
fn join<T: Scalar>(tensors: &mut TensorMap, layer: usize, moe: &MoeConfig) -> Result<()> {
    let MoeConfig { width, hidden, experts, .. } = *moe;
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
    if moe.selection_bias {
        tensors.insert_values(name("moe.selection_bias"), &[experts], &vec![T::Acc::default(); experts]);
    }
    Ok(())
}

/// The opposite of [`join`], for gradients.
fn split<R: Real>(tensors: &mut TensorMap, layer: usize, moe: &MoeConfig) -> Result<()> {
    let MoeConfig { width, hidden, experts, .. } = *moe;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Case;
    use moe_core::{Balance, BalanceLoss, Host, Sizes};
    use std::path::Path;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/train/toy_lm.safetensors");

    fn near(what: &str, got: impl IntoIterator<Item = f64>, want: &[f32], tolerance: f64) {
        let got: Vec<f64> = got.into_iter().collect();
        assert_eq!(got.len(), want.len(), "{what}");
        for (got, &want) in got.into_iter().zip(want) {
            assert!((got - f64::from(want)).abs() <= tolerance, "{what} is {got}, wanted {want}");
        }
    }

    /// 50 steps of the reference run (torch), within its tolerances.
    #[test]
    fn the_model_trains_as_the_reference_does() {
        let case = Case::read(Path::new(FILE)).unwrap();
        let mut moe = MoeConfig::new(Sizes { width: 32, hidden: 32, experts: 8, top_k: 2 }).unwrap();
        moe.selection_bias = true;
        let loss = Some(BalanceLoss::Sequence(0.01));
        moe.balance = Balance { loss, bias_rate: 1e-3, ..Balance::default() };
        let config = ReplayConfig {
            moe,
            layers: 2,
            epsilon: 1e-5,
            lr: 3e-3,
            adam: AdamWOptions::default(),
            clip: 0.0,
            sequences: 4,
            length: 8,
        };
        let mut weights = TensorMap::default();
        for name in case.names().filter_map(|name| name.strip_prefix("init.")) {
            let tensor = case.tensor(&format!("init.{name}")).unwrap();
            let values = tensor.floats().unwrap();
            weights.insert_values(name, tensor.shape(), &values);
        }
        let mut replay = Replay::new::<Host, f32>(&Host, &config, &mut weights).unwrap();
        weights.expect_empty().unwrap();

        let tokens = case.indices("in.tokens", &[50, 4, 9], 255).unwrap();
        let (losses, norms) =
            (case.floats("out.loss", &[50]).unwrap(), case.floats("out.grad_norm", &[50]).unwrap());
        let (balance, biases) =
            (case.floats("out.aux", &[50, 2]).unwrap(), case.floats("out.bias", &[50, 2, 8]).unwrap());
        let counts = case.indices("out.counts", &[50, 2, 8], 64).unwrap();
        for (at, rows) in tokens.chunks(36).enumerate() {
            let rows = Array2::from_shape_fn((4, 9), |(row, column)| rows[9 * row + column] as u8);
            let mut step = replay.step(&rows).unwrap();
            near("loss", [step.loss], &losses[at..=at], 1e-4);
            near("norm", [step.grad_norm], &norms[at..=at], 1e-4);
            near("balance loss", step.balance_loss, &balance[2 * at..][..2], 1e-5);
            near("bias", step.bias.concat(), &biases[16 * at..][..16], 2e-6);
            assert_eq!(step.counts.concat(), counts[16 * at..][..16], "step {at}");
            if at == 0 {
                for name in case.names().filter_map(|name| name.strip_prefix("grad0.")) {
                    let tensor = case.tensor(&format!("grad0.{name}")).unwrap();
                    let want = tensor.floats().unwrap();
                    let largest = want.iter().fold(1e-6, |most: f32, value| most.max(value.abs()));
                    let got = step.gradients.take_values::<f32>(name, tensor.shape()).unwrap();
                    near(name, got.into_iter().map(f64::from), &want, 5e-5 * f64::from(largest));
                }
                step.gradients.expect_empty().unwrap();
            }
        }
    }
}
