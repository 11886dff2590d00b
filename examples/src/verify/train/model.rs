//! The model of a run: the dense parts on the host, the layers on the device.

use super::options::Options;
use crate::dense::loss::cross_entropy;
use crate::dense::norm::{RmsNorm, SavedNorm};
use crate::dense::param::Matrix;
use crate::dense::{embed, linear};
use crate::fixture::Case;
use crate::verify::layer_run::read_all;
use crate::verify::layer_spec::named;
use crate::verify::weights::Named;
use anyhow::{Context, Result};
use moe_core::ndarray::{Array1, Array2};
use moe_core::ops::AdamWSettings;
use moe_core::{AdamW, Batch, Grads, Limits, MemoryPolicy, MoeDevice, MoeLayer, Runner, Saved, whole};

/// What a step did.
#[derive(Default)]
pub(super) struct Step {
    /// mean cross-entropy, without auxiliary losses
    pub(super) loss: f32,
    /// norm of all gradients, before clipping
    pub(super) grad_norm: f32,
    /// (layers): balancing loss
    pub(super) aux: Vec<f32>,
    /// (layers): z-loss
    pub(super) z: Vec<f32>,
    /// (layers, experts): slots
    pub(super) counts: Vec<u32>,
    /// (layers, experts): selection bias after the step
    pub(super) bias: Vec<f32>,
}

struct Layer<D: MoeDevice<f32>> {
    norm: RmsNorm<f32>,
    moe: MoeLayer<D, f32>,
    saved: Saved<D, f32>,
    grads: Grads<D, f32>,
    adam: AdamW<D, f32>,
}

/// The model with its optimizer.
pub(super) struct Model<'a, D: MoeDevice<f32>> {
    options: &'a Options,
    embed: Matrix<f32>,
    head: Matrix<f32>,
    norm: RmsNorm<f32>,
    layers: Vec<Layer<D>>,
    runner: Runner<D, f32>,
    steps: u64,
    /// of the step that has been through backward
    step: Step,
}

impl<'a, D: MoeDevice<f32>> Model<'a, D> {
    /// The model with the first weights of a case.
    ///
    /// # Errors
    /// Fixture errors and the library's.
    pub(super) fn new(device: &D, case: &Case, options: &'a Options) -> Result<Self> {
        let Options { width, vocabulary, sequences, length, norm_eps, .. } = *options;
        let table = |name: &str| -> Result<Matrix<f32>> {
            let shape = [vocabulary, width];
            Ok(Matrix::new(Array2::from_shape_vec(shape, case.scalars(name, &shape)?)?))
        };
        let norm = |name: &str| -> Result<RmsNorm<f32>> {
            let mut norm = RmsNorm::new(width, norm_eps);
            norm.weight.value = Array1::from_vec(case.scalars(name, &[width])?);
            Ok(norm)
        };
        let first = options.layers.first().context("the model has no layers")?;
        let limits = Limits { tokens: sequences * length, sequences, training: true };
        let mut runner = Runner::with_limits(device, &first.config(MemoryPolicy::Keep)?, limits)?;
        runner.set_batch(&Batch { sequences: &vec![length; sequences], ..Batch::default() })?;
        let mut layers = Vec::new();
        for (at, spec) in options.layers.iter().enumerate() {
            let config = spec.config(MemoryPolicy::Keep)?;
            let moe = spec.load(device, &config)?;
            layers.push(Layer {
                norm: norm(&format!("init.layers.{at}.norm.weight"))?,
                saved: runner.saved(&config)?,
                grads: moe.grads()?,
                adam: AdamW::with_options(&moe, options.adam)?,
                moe,
            });
        }
        Ok(Self {
            options,
            embed: table("init.embed.weight")?,
            head: table("init.head.weight")?,
            norm: norm("init.norm.weight")?,
            layers,
            runner,
            steps: 0,
            step: Step::default(),
        })
    }

    /// One batch (sequences, length + 1), forward and back.
    ///
    /// # Errors
    /// The library's.
    pub(super) fn forward_backward(&mut self, batch: &[u8]) -> Result<()> {
        let length = self.options.length;
        let inputs: Vec<u8> = batch.chunks(length + 1).flat_map(|row| &row[..length]).copied().collect();
        let targets: Vec<u8> = batch.chunks(length + 1).flat_map(|row| &row[1..]).copied().collect();
        self.step = Step::default();
        let mut x = embed::forward(&self.embed, &inputs);
        let mut kept: Vec<(SavedNorm<f32>, _)> = Vec::new();
        for layer in &mut self.layers {
            let (normed, saved) = layer.norm.forward(x.view());
            let rows = self.runner.upload(normed.view())?;
            let mut y = self.runner.like(&rows)?;
            self.runner.forward_train(&layer.moe, &rows, &mut layer.saved, &mut y)?;
            let figures = self.runner.figures(&layer.saved)?;
            self.step.aux.push(figures.balance_loss as f32);
            self.step.z.push(figures.z_loss as f32);
            self.step.counts.extend(figures.tokens_per_expert);
            x += &self.runner.download(&y)?;
            kept.push((saved, rows));
        }
        let (normed, saved) = self.norm.forward(x.view());
        let mut logits = linear::forward(normed.view(), self.head.value.view());
        self.step.loss = cross_entropy(&mut logits, &targets) as f32;
        linear::weight_gradient(logits.view(), normed.view(), &mut self.head.grad);
        let dnormed = linear::input_gradient(logits.view(), self.head.value.view());
        let mut dx = self.norm.backward(&saved, dnormed.view());
        for (layer, (norm, rows)) in self.layers.iter_mut().zip(kept).rev() {
            let dy = self.runner.upload(dx.view())?;
            let mut drows = self.runner.like(&rows)?;
            let Layer { moe, saved, grads, .. } = layer;
            self.runner.backward(moe, &rows, saved, &dy, &mut drows, grads)?;
            dx += &layer.norm.backward(&norm, self.runner.download(&drows)?.view());
        }
        embed::backward(&mut self.embed, &inputs, dx.view());
        Ok(())
    }

    /// Ends a step: clips, moves the selection biases, and updates all weights.
    ///
    /// # Errors
    /// The library's.
    pub(super) fn update(&mut self) -> Result<Step> {
        let Options { lr, clip, adam, .. } = *self.options;
        let mut step = std::mem::take(&mut self.step);
        let mut squares = 0.0;
        for layer in &mut self.layers {
            squares += self.runner.sum_squares(&layer.grads)? + layer.norm.weight.flat().grad_squares();
        }
        let dense = [self.embed.flat(), self.head.flat(), self.norm.weight.flat()];
        squares += dense.iter().map(|param| param.grad_squares()).sum::<f64>();
        let norm = squares.sqrt();
        step.grad_norm = norm as f32;
        let scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let settings = AdamWSettings {
            lr,
            beta1: adam.beta1,
            beta2: adam.beta2,
            eps: adam.eps,
            weight_decay: adam.weight_decay,
            step: self.steps,
            scale,
        };
        for param in dense {
            param.adamw(&settings)?;
        }
        for layer in &mut self.layers {
            layer.norm.weight.flat().adamw(&settings)?;
            layer.adam.step_scaled(&mut self.runner, &mut layer.moe, &mut layer.grads, lr, scale)?;
            let bias = layer.moe.selection_bias().context("the layer has no selection bias")?;
            let mut values = vec![0.0; whole::<D, f32>(bias).len()];
            self.runner.session().download(whole::<D, f32>(bias), &mut values)?;
            step.bias.extend(values);
        }
        Ok(step)
    }

    /// All gradients by name, before a step's [`update`](Self::update).
    ///
    /// # Errors
    /// The library's.
    pub(super) fn gradients(&mut self) -> Result<Named> {
        self.tensors(|param| param.grad.to_vec(), |layer, runner| read_all(runner, &layer.grads.weights))
    }

    /// All weights by name.
    ///
    /// # Errors
    /// The library's.
    pub(super) fn weights(&mut self) -> Result<Named> {
        self.tensors(|param| param.value.to_vec(), |layer, runner| read_all(runner, layer.moe.weights()?))
    }

    fn tensors(
        &mut self,
        dense: impl Fn(crate::dense::param::Flat<'_, f32>) -> Vec<f32>,
        of: impl Fn(&Layer<D>, &mut Runner<D, f32>) -> Result<crate::verify::layer_spec::TensorList>,
    ) -> Result<Named> {
        let mut all = vec![
            ("embed.weight".to_owned(), dense(self.embed.flat())),
            ("head.weight".to_owned(), dense(self.head.flat())),
            ("norm.weight".to_owned(), dense(self.norm.weight.flat())),
        ];
        for (at, (layer, spec)) in self.layers.iter_mut().zip(&self.options.layers).enumerate() {
            all.push((format!("layers.{at}.norm.weight"), dense(layer.norm.weight.flat())));
            let tensors = named(spec, &of(layer, &mut self.runner)?)?;
            all.extend(tensors.into_iter().map(|(name, values)| (format!("layers.{at}.{name}"), values)));
        }
        Ok(all)
    }
}
