//! What a training run is made of.

use crate::fixture::{Case, Keys};
use crate::verify::layer_spec::LayerSpec;
use anyhow::{Result, ensure};
use moe_core::AdamWOptions;

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
}
