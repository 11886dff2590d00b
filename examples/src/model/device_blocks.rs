//! [`Blocks`] on a device: one layer, optimizer and saved pass per layer of the model, one runner for all.

use super::blocks::{Blocks, Shape};
use super::parameters::{Parameters, RankRunner, Rules};
use super::tensors::TensorMap;
use crate::ranks::Ranks;
use crate::rng::Rng;
use anyhow::Result;
use moe_core::{
    AdamWOptions, Axis, Batch, Collective, Elem, Figures, Grads, Host, Limits, MoeConfig, MoeDevice,
    MoeLayer, Reduce, Rows, Runner, Saved, Scalar, ViewMut, whole,
};
use moe_dist::Group;
use moe_dist::checkpoint::{Checkpoint, Piece};
use moe_dist::gradients::load_span;
use moe_dist::mesh::Span;
use ndarray::{Array2, ArrayView2};
use std::sync::Arc;

/// The MoE layers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct BlocksConfig {
    /// every layer's description
    pub moe: MoeConfig,
    /// number of layers
    pub layers: usize,
    /// most tokens of this rank's share of a batch
    pub max_tokens: usize,
    /// most sequences of this rank's share of a batch
    pub max_sequences: usize,
    /// seed of the first weights
    pub seed: u64,
    /// what stays the same in every step of the optimizer
    pub adam: AdamWOptions,
    /// whether ranks keep shards of parameters, or whole ones
    pub sharded: bool,
}

/// The MoE layers of a model on device `D`, with weights of storage type `T`.
pub struct DeviceBlocks<D: MoeDevice<T>, T: Scalar> {
    runner: RankRunner<D, T>,
    layers: Vec<Block<D, T>>,
    parameters: Parameters<D, T>,
    ranks: Arc<Ranks>,
    adam: AdamWOptions,
    /// the ranks that route other tokens, and all
    counted: [Group<Host>; 2],
    y: Rows<D, T>,
    dy: Rows<D, T>,
    dx: Rows<D, T>,
}

struct Block<D: MoeDevice<T>, T: Scalar> {
    layer: MoeLayer<D, T>,
    saved: Saved<D, T>,
    grads: Grads<D, T>,
    x: Rows<D, T>,
}

impl<D: MoeDevice<T>, T: Scalar> DeviceBlocks<D, T> {
    /// Layers with random weights, or this rank's part of them.
    ///
    /// # Errors
    /// If the configuration is wrong, or does not fit the ranks, or the device has too little memory.
    pub fn init(device: &D, config: &BlocksConfig, ranks: &Arc<Ranks>) -> Result<Self> {
        let BlocksConfig { max_tokens, max_sequences, .. } = *config;
        let limits = Limits { sequences: max_sequences.max(1), ..Limits::training(max_tokens.max(1)) };
        let mut moe = config.moe;
        moe.place = ranks.mesh().place(ranks.at(), ranks.sequence_parallel());
        let groups = ranks.mesh().groups_of(ranks.rank(), &mut ranks.maker(device))?;
        let runner = Runner::with_groups(device, &moe, limits, groups)?;
        let rows = || runner.rows(0, moe.width);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            moe.layer = u32::try_from(index)?;
            let seed = Rng::new(config.seed, 1 + index as u64).bits();
            let layer = MoeLayer::init(device, &moe, seed)?;
            let (saved, grads) = (runner.saved(&moe)?, layer.grads()?);
            layers.push(Block { layer, saved, grads, x: rows()? });
        }
        let rules = Rules { ranks, options: config.adam };
        let all = layers.iter().map(|block| &block.layer);
        let parameters = Parameters::new(runner.session(), rules, all, config.sharded)?;
        let counted = [ranks.group(&Host, load_span(ranks.mesh()))?, ranks.group(&Host, Span::World)?];
        let (y, dy, dx) = (rows()?, rows()?, rows()?);
        let (ranks, adam) = (Arc::clone(ranks), config.adam);
        Ok(Self { runner, layers, parameters, ranks, adam, counted, y, dy, dx })
    }

    /// Says what the rows of the next call are part of.
    fn set_batch(&mut self, shape: &Shape) -> Result<()> {
        let Shape { sequences, length, step_sequences } = *shape;
        let (ranks, part) = (&self.ranks, self.ranks.part(length).len());
        let size = ranks.mesh().degrees().tp;
        let split = |rank| Axis { size, rank }.share(sequences * part).len();
        let split: Vec<_> =
            if ranks.sequence_parallel() { (0..size).map(split).collect() } else { Vec::new() };
        let step_tokens = Some(step_sequences * length);
        Ok(self.runner.set_batch(&Batch {
            sequences: &vec![part; sequences],
            whole_sequences: &vec![length; sequences],
            split: &split,
            batch_tokens: step_tokens,
            step_tokens,
            step_sequences: Some(step_sequences),
            ..Batch::default()
        })?)
    }

    fn rules(&self) -> Rules<'_> {
        Rules { ranks: &self.ranks, options: self.adam }
    }
}

impl<D: MoeDevice<T>, T: Scalar> Blocks<T::Acc> for DeviceBlocks<D, T> {
    fn forward(&mut self, layer: usize, x: ArrayView2<'_, T::Acc>, shape: &Shape) -> Result<Array2<T::Acc>> {
        self.set_batch(shape)?;
        let Self { runner, layers, y, .. } = self;
        let block = &mut layers[layer];
        upload(runner, x, &mut block.x)?;
        resize(runner, x.dim(), y)?;
        runner.forward(&block.layer, &block.x, y)?;
        download(runner, y)
    }

    fn forward_train(
        &mut self,
        layer: usize,
        x: ArrayView2<'_, T::Acc>,
        shape: &Shape,
    ) -> Result<Array2<T::Acc>> {
        self.set_batch(shape)?;
        let Self { runner, layers, y, .. } = self;
        let block = &mut layers[layer];
        upload(runner, x, &mut block.x)?;
        resize(runner, x.dim(), y)?;
        runner.forward_train(&block.layer, &block.x, &mut block.saved, y)?;
        download(runner, y)
    }

    fn backward(&mut self, layer: usize, dy: ArrayView2<'_, T::Acc>) -> Result<Array2<T::Acc>> {
        let Self { runner, layers, dy: device_dy, dx, .. } = self;
        let Block { layer, saved, grads, x, .. } = &mut layers[layer];
        upload(runner, dy, device_dy)?;
        resize(runner, dy.dim(), dx)?;
        runner.backward(layer, x, saved, device_dy, dx, grads)?;
        download(runner, dx)
    }

    fn figures(&mut self) -> Result<Vec<Figures>> {
        let figures = |block: &Block<D, T>| Ok(self.runner.figures(&block.saved)?);
        let mut all = self.layers.iter().map(figures).collect::<Result<Vec<_>>>()?;
        if self.ranks.mesh().world() > 1 {
            sum_figures(&mut all, &mut self.counted)?;
        }
        Ok(all)
    }

    fn reduce(&mut self) -> Result<()> {
        let mut grads: Vec<_> = self.layers.iter_mut().map(|block| &mut block.grads).collect();
        self.parameters.reduce(self.runner.session(), &mut grads)
    }

    fn grad_norm(&mut self, own: f64) -> Result<f64> {
        let grads: Vec<_> = self.layers.iter().map(|block| &block.grads).collect();
        self.parameters.norm(self.runner.session_mut(), &grads, own)
    }

    fn update(&mut self, lr: f64, scale: f64) -> Result<()> {
        let Self { runner, layers, parameters, .. } = self;
        for (index, Block { layer, grads, .. }) in layers.iter_mut().enumerate() {
            parameters.step(runner, index, layer, grads, [lr, scale])?;
        }
        Ok(())
    }

    fn pieces(&mut self) -> Result<Vec<Piece>> {
        // The layers are read on streams of their own.
        self.runner.session().sync()?;
        let mut all = Vec::new();
        for (index, block) in self.layers.iter().enumerate() {
            all.extend(self.parameters.pieces(self.runner.session(), self.rules(), index, &block.layer)?);
        }
        Ok(all)
    }

    fn load(&mut self, checkpoint: &mut Checkpoint) -> Result<()> {
        let Self { runner, layers, parameters, ranks, adam, .. } = self;
        let rules = Rules { ranks, options: *adam };
        for (index, block) in layers.iter_mut().enumerate() {
            let config = *block.layer.config();
            block.layer = parameters.load(runner.session(), rules, index, &config, checkpoint)?;
            block.grads.clear();
        }
        Ok(())
    }

    fn load_weights(&mut self, tensors: &mut TensorMap) -> Result<()> {
        for (index, block) in self.layers.iter_mut().enumerate() {
            block.load_layer(tensors, index)?;
        }
        let (layers, sharded) = (&self.layers, matches!(self.parameters, Parameters::Sharded { .. }));
        let all = layers.iter().map(|block| &block.layer);
        self.parameters = Parameters::new(self.runner.session(), self.rules(), all, sharded)?;
        Ok(())
    }

    fn gradients(&mut self, tensors: &mut TensorMap) -> Result<()> {
        for (index, Block { layer, grads, .. }) in self.layers.iter().enumerate() {
            for (spec, buffer) in layer.config().tensors().iter().zip(grads.weights.list()) {
                let (Some(spec), Some(buffer)) = (spec, buffer) else { continue };
                let values = read::<D, T, T::Acc>(&mut self.runner, buffer)?;
                tensors.insert_values(format!("layers.{index}.moe.{}", spec.name), spec.shape(), &values);
            }
        }
        Ok(())
    }

    fn gates(&mut self) -> Result<Vec<Vec<u8>>> {
        let Self { runner, layers, .. } = self;
        let gate = |block: &Block<D, T>| {
            let values = read::<D, T, T>(runner, &block.layer.weights()?.gate)?;
            Ok(bytemuck::cast_slice(&values).to_vec())
        };
        layers.iter().map(gate).collect()
    }

    fn selection_bias(&mut self, layer: usize) -> Result<Vec<T::Acc>> {
        match self.layers[layer].layer.selection_bias() {
            Some(bias) => read::<D, T, T::Acc>(&mut self.runner, bias),
            None => Ok(Vec::new()),
        }
    }
}

/// Adds up the ranks' figures: counts over those that route other tokens, losses over all.
fn sum_figures(all: &mut [Figures], [counted, everyone]: &mut [Group<Host>; 2]) -> Result<()> {
    let (mut counts, mut losses) = (Vec::new(), Vec::new());
    for figures in &*all {
        counts.extend(figures.tokens_per_expert.iter().map(|count| f64::from(*count)));
        counts.extend([figures.routed, figures.dropped, figures.non_finite].map(|count| count as f64));
        losses.extend([figures.balance_loss, figures.z_loss]);
    }
    counted.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut counts))?;
    everyone.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut losses))?;
    let (mut counts, mut losses) = (counts.into_iter(), losses.into_iter());
    for figures in all {
        let mut count = || counts.next().unwrap_or_default();
        figures.tokens_per_expert.iter_mut().for_each(|tokens| *tokens = count() as u32);
        [figures.routed, figures.dropped, figures.non_finite] = std::array::from_fn(|_| count() as u64);
        [figures.balance_loss, figures.z_loss] = std::array::from_fn(|_| losses.next().unwrap_or_default());
        figures.set_load();
    }
    Ok(())
}

impl<D: MoeDevice<T>, T: Scalar> Block<D, T> {
    fn load_layer(&mut self, tensors: &mut TensorMap, index: usize) -> Result<()> {
        let (device, config) = (self.layer.device().clone(), *self.layer.config());
        let state = tensors.take_all(&format!("layers.{index}.moe."));
        self.layer = MoeLayer::from_state(&device, &config, state)?;
        self.grads.clear();
        Ok(())
    }
}

/// All elements of a buffer.
fn read<D: MoeDevice<T>, T: Scalar, E: Elem>(
    runner: &mut RankRunner<D, T>,
    buffer: &D::Owned<E>,
) -> Result<Vec<E>> {
    let view = whole::<D, E>(buffer);
    let mut values = vec![E::default(); view.len()];
    runner.session().download(view, &mut values)?;
    Ok(values)
}

/// Puts host rows on the device, in a buffer that is made anew only when the number of rows changes.
fn upload<D: MoeDevice<T>, T: Scalar>(
    runner: &RankRunner<D, T>,
    source: ArrayView2<'_, T::Acc>,
    target: &mut Rows<D, T>,
) -> Result<()> {
    let source = source.mapv(T::narrow);
    resize(runner, source.dim(), target)?;
    Ok(runner.write(source.view(), target)?)
}

fn resize<D: MoeDevice<T>, T: Scalar>(
    runner: &RankRunner<D, T>,
    dim: (usize, usize),
    rows: &mut Rows<D, T>,
) -> Result<()> {
    if rows.dim() != dim {
        *rows = runner.rows(dim.0, dim.1)?;
    }
    Ok(())
}

fn download<D: MoeDevice<T>, T: Scalar>(
    runner: &RankRunner<D, T>,
    source: &Rows<D, T>,
) -> Result<Array2<T::Acc>> {
    Ok(runner.download(source)?.mapv(T::widen))
}
