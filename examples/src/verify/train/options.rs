//! What a training run is made of.

use crate::fixture::{Case, Keys};
use crate::model::replay::ReplayConfig;
use crate::model::tensors::TensorMap;
use crate::verify::layer_spec::{LayerSpec, TensorList, named};
use crate::verify::weights::Named;
use anyhow::{Context, Result, ensure};
use moe_core::{AdamWOptions, MemoryPolicy, MoeConfig};

/// The configuration of a run.
pub(super) struct Options {
    /// the layers with their first weights
    pub(super) layers: Vec<LayerSpec<f32>>,
    /// D
    pub(super) width: usize,
    /// sequences of a batch
    pub(super) sequences: usize,
    /// tokens of a sequence
    pub(super) length: usize,
    /// number of different tokens
    pub(super) vocabulary: usize,
    /// added to the mean square in norms
    pub(super) norm_eps: f64,
    /// learning rate
    pub(super) lr: f64,
    /// largest norm of the gradient; 0 for no limit
    pub(super) clip: f64,
    /// what else the optimizer needs
    pub(super) adam: AdamWOptions,
}

impl Options {
    /// The run of a case.
    ///
    /// # Errors
    /// Fixture errors.
    pub(super) fn of(case: &Case) -> Result<Self> {
        let keys = case.keys();
        let [steps, sequences, row] = case.dims("in.tokens")?;
        let [vocabulary, width] = case.dims("init.embed.weight")?;
        keys.agrees("steps", steps)?;
        keys.agrees("B", sequences)?;
        keys.agrees("L", row.saturating_sub(1))?;
        keys.agrees("vocab", vocabulary)?;
        ensure!((1..=256).contains(&vocabulary), "{vocabulary} tokens do not fit in a byte");
        ensure!(steps * sequences > 0 && row > 1, "the run has no tokens");
        // How the tokens were drawn; they are in the file.
        keys.get("mod");
        let length = row - 1;
        let count = keys.count("layers")?;
        ensure!(count <= case.names().count(), "there are not enough tensors for {count} layers");
        let layers = (0..count)
            .map(|layer| Self::layer(case, &keys, layer, sequences * length))
            .collect::<Result<_>>()?;
        let [beta1, beta2] = keys.numbers("betas")?;
        keys.required("lr")?;
        let options = Self {
            layers,
            width,
            sequences,
            length,
            vocabulary,
            norm_eps: keys.number("rms_eps", 1e-5)?,
            lr: keys.number("lr", 0.0)?,
            clip: keys.number("clip", 0.0)?,
            adam: AdamWOptions {
                beta1,
                beta2,
                eps: keys.number("eps", 1e-8)?,
                weight_decay: keys.number("weight_decay", 0.0)?,
            },
        };
        keys.finish()?;
        Ok(options)
    }

    fn layer(case: &Case, keys: &Keys<'_>, layer: usize, tokens: usize) -> Result<LayerSpec<f32>> {
        let mut spec = LayerSpec::of(case, keys, &format!("init.layers.{layer}."), tokens)?;
        spec.router.expert_bias.get_or_insert_with(|| vec![0.0; spec.experts.experts]);
        spec.balance.bias_rate = keys.number("bias_coeff", 0.0)? as f32;
        Ok(spec)
    }

    /// The configuration that all layers have.
    fn moe(&self) -> Result<MoeConfig> {
        let first = self.layers.first().context("the model has no layers")?.config(MemoryPolicy::Keep)?;
        for (at, layer) in self.layers.iter().enumerate() {
            ensure!(layer.config(MemoryPolicy::Keep)? == first, "layer {at} is not like layer 0");
        }
        Ok(first)
    }

    /// The run.
    ///
    /// # Errors
    /// If the library does not allow it, or the layers are not alike.
    pub(super) fn replay(&self) -> Result<ReplayConfig> {
        Ok(ReplayConfig {
            moe: self.moe()?,
            vocabulary: self.vocabulary,
            layers: self.layers.len(),
            epsilon: self.norm_eps,
            lr: self.lr,
            adam: self.adam,
            clip: self.clip,
            sequences: self.sequences,
            length: self.length,
        })
    }

    /// The first weights, as the run names them.
    ///
    /// # Errors
    /// Fixture errors, and those of [`replay`](Self::replay).
    pub(super) fn weights(&self, case: &Case) -> Result<TensorMap> {
        let moe = self.moe()?;
        let mut weights = TensorMap::default();
        for (name, shape) in self.dense() {
            let values = case.scalars::<f32>(&format!("init.{name}"), &shape)?;
            weights.insert_values(name, &shape, &values);
        }
        for (at, layer) in self.layers.iter().enumerate() {
            weights.insert_all(&format!("layers.{at}.moe."), layer.state(&moe));
        }
        Ok(weights)
    }

    /// Weights or gradients of the run, by the names and in the layouts of files. Takes them out of `tensors`.
    ///
    /// # Errors
    /// If one is missing or has another shape, and those of [`replay`](Self::replay).
    pub(super) fn named(&self, tensors: &mut TensorMap) -> Result<Named> {
        let moe = self.moe()?;
        let mut all = Vec::new();
        for (name, shape) in self.dense() {
            let values = tensors.take_values(&name, &shape)?;
            all.push((name, values));
        }
        for (at, layer) in self.layers.iter().enumerate() {
            let mut list: TensorList = [const { None }; moe_core::TENSORS];
            for (values, spec) in list.iter_mut().zip(&moe.tensors()) {
                if let Some(spec) = spec {
                    let name = format!("layers.{at}.moe.{}", spec.name);
                    *values = Some(tensors.take_values(&name, spec.shape())?);
                }
            }
            let tensors = named(layer, &list)?;
            all.extend(tensors.into_iter().map(|(name, values)| (format!("layers.{at}.{name}"), values)));
        }
        Ok(all)
    }

    /// Names and shapes of the dense parts' weights.
    fn dense(&self) -> Vec<(String, Vec<usize>)> {
        let norm = |name: String| (name, vec![self.width]);
        let table = |name: &str| (name.to_owned(), vec![self.vocabulary, self.width]);
        let mut all = vec![table("embed.weight"), table("head.weight"), norm("norm.weight".to_owned())];
        all.extend((0..self.layers.len()).map(|at| norm(format!("layers.{at}.norm.weight"))));
        all
    }
}
