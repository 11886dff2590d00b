//! [`Blocks`] on a device: one layer, optimizer and saved pass per layer of the model, one runner for all.

use super::blocks::Blocks;
use super::tensors::TensorMap;
use crate::rng::Rng;
use anyhow::Result;
use moe_core::{
    AdamW, AdamWOptions, Batch, Elem, Figures, Grads, Limits, MoeConfig, MoeDevice, MoeLayer, Rows, Runner,
    Saved, Scalar, whole,
};
use ndarray::{Array2, ArrayView2};

/// The MoE layers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct BlocksConfig {
    /// every layer's description
    pub moe: MoeConfig,
    /// number of layers
    pub layers: usize,
    /// most tokens of a batch
    pub max_tokens: usize,
    /// most sequences of a batch
    pub max_sequences: usize,
    /// seed of the first weights
    pub seed: u64,
    /// what stays the same in every step of the optimizer
    pub adam: AdamWOptions,
}

/// The MoE layers of a model on device `D`, with weights of storage type `T`.
pub struct DeviceBlocks<D: MoeDevice<T>, T: Scalar> {
    runner: Runner<D, T>,
    layers: Vec<Block<D, T>>,
    adam: AdamWOptions,
    sequences: Vec<usize>,
    y: Rows<D, T>,
    dy: Rows<D, T>,
    dx: Rows<D, T>,
}

struct Block<D: MoeDevice<T>, T: Scalar> {
    layer: MoeLayer<D, T>,
    saved: Saved<D, T>,
    grads: Grads<D, T>,
    adam: AdamW<D, T>,
    x: Rows<D, T>,
}

impl<D: MoeDevice<T>, T: Scalar> DeviceBlocks<D, T> {
    /// Layers with random weights.
    ///
    /// # Errors
    /// If the configuration is wrong, or the device has too little memory.
    pub fn init(device: &D, config: &BlocksConfig) -> Result<Self> {
        let limits = Limits { sequences: config.max_sequences, ..Limits::training(config.max_tokens) };
        let runner = Runner::with_limits(device, &config.moe, limits)?;
        let rows = || runner.rows(0, config.moe.width);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let mut moe = config.moe;
            moe.layer = u32::try_from(index)?;
            let seed = Rng::new(config.seed, 1 + index as u64).bits();
            let layer = MoeLayer::init(device, &moe, seed)?;
            let (saved, grads, adam) =
                (runner.saved(&moe)?, layer.grads()?, AdamW::with_options(&layer, config.adam)?);
            layers.push(Block { layer, saved, grads, adam, x: rows()? });
        }
        let (y, dy, dx) = (rows()?, rows()?, rows()?);
        Ok(Self { runner, layers, adam: config.adam, sequences: Vec::new(), y, dy, dx })
    }
}

impl<D: MoeDevice<T>, T: Scalar> Blocks<T::Acc> for DeviceBlocks<D, T> {
    fn forward(&mut self, layer: usize, x: ArrayView2<'_, T::Acc>) -> Result<Array2<T::Acc>> {
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
        length: usize,
    ) -> Result<Array2<T::Acc>> {
        let Self { runner, layers, sequences, y, .. } = self;
        let block = &mut layers[layer];
        upload(runner, x, &mut block.x)?;
        resize(runner, x.dim(), y)?;
        sequences.clear();
        sequences.resize(x.nrows() / length, length);
        runner.set_batch(&Batch { sequences, ..Batch::default() })?;
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

    fn figures(&mut self, layer: usize) -> Result<Figures> {
        Ok(self.runner.figures(&self.layers[layer].saved)?)
    }

    fn grad_squares(&mut self) -> Result<f64> {
        let mut sum = 0.0;
        for block in &self.layers {
            sum += self.runner.sum_squares(&block.grads)?;
        }
        Ok(sum)
    }

    fn update(&mut self, lr: f64, scale: f64) -> Result<()> {
        for Block { layer, grads, adam, .. } in &mut self.layers {
            adam.step_scaled(&mut self.runner, layer, grads, lr, scale)?;
        }
        Ok(())
    }

    fn state(&mut self, tensors: &mut TensorMap) -> Result<()> {
        // The layers are read on streams of their own.
        self.runner.session().sync()?;
        for (index, Block { layer, adam, .. }) in self.layers.iter().enumerate() {
            tensors.insert_all(&format!("layers.{index}.moe."), layer.state()?);
            tensors.insert_all(&format!("layers.{index}.adam."), adam.state(layer)?);
        }
        Ok(())
    }

    fn load_state(&mut self, tensors: &mut TensorMap) -> Result<()> {
        for (index, block) in self.layers.iter_mut().enumerate() {
            block.load_layer(tensors, index)?;
            let state = tensors.take_all(&format!("layers.{index}.adam."));
            block.adam = AdamW::from_state(&block.layer, self.adam, state)?;
        }
        Ok(())
    }

    fn load_weights(&mut self, tensors: &mut TensorMap) -> Result<()> {
        for (index, block) in self.layers.iter_mut().enumerate() {
            block.load_layer(tensors, index)?;
            block.adam = AdamW::with_options(&block.layer, self.adam)?;
        }
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

    fn selection_bias(&mut self, layer: usize) -> Result<Vec<T::Acc>> {
        match self.layers[layer].layer.selection_bias() {
            Some(bias) => read::<D, T, T::Acc>(&mut self.runner, bias),
            None => Ok(Vec::new()),
        }
    }
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
    runner: &mut Runner<D, T>,
    buffer: &D::Owned<E>,
) -> Result<Vec<E>> {
    let view = whole::<D, E>(buffer);
    let mut values = vec![E::default(); view.len()];
    runner.session().download(view, &mut values)?;
    Ok(values)
}

/// Puts host rows on the device, in a buffer that is made anew only when the number of rows changes.
fn upload<D: MoeDevice<T>, T: Scalar>(
    runner: &Runner<D, T>,
    source: ArrayView2<'_, T::Acc>,
    target: &mut Rows<D, T>,
) -> Result<()> {
    let source = source.mapv(T::narrow);
    resize(runner, source.dim(), target)?;
    Ok(runner.write(source.view(), target)?)
}

fn resize<D: MoeDevice<T>, T: Scalar>(
    runner: &Runner<D, T>,
    dim: (usize, usize),
    rows: &mut Rows<D, T>,
) -> Result<()> {
    if rows.dim() != dim {
        *rows = runner.rows(dim.0, dim.1)?;
    }
    Ok(())
}

fn download<D: MoeDevice<T>, T: Scalar>(
    runner: &Runner<D, T>,
    source: &Rows<D, T>,
) -> Result<Array2<T::Acc>> {
    Ok(runner.download(source)?.mapv(T::widen))
}
