//! One step of a layer: all that comes out of it, back on the host.

use super::layer_spec::{LayerSpec, TensorList};
use anyhow::{Result, ensure};
use moe_core::ndarray::ArrayView2;
use moe_core::ops::Stamp;
use moe_core::{
    Batch, Collective, Elem, In, Limits, MemoryPolicy, MoeDevice, MoeLayer, Rows, Runner, Saved, Scalar,
    Tensors, whole,
};

/// The tokens of a call, and where they stand in the step.
pub(crate) struct Call<'a, T> {
    /// (tokens, width)
    pub(crate) x: &'a [T],
    /// (tokens, width): the gradient of the output
    pub(crate) dout: &'a [T],
    /// lengths of sequences, empty for one
    pub(crate) sequences: &'a [usize],
    /// the step's number of the first token
    pub(crate) first_token: usize,
}

/// What a training step gives, and the inference output.
pub(crate) struct LayerRun<T> {
    /// (tokens, experts)
    pub(crate) logits: Vec<f32>,
    /// (tokens, top_k)
    pub(crate) ids: Vec<u32>,
    /// (tokens, top_k)
    pub(crate) weights: Vec<f32>,
    /// (experts)
    pub(crate) counts: Vec<u32>,
    /// (tokens, width)
    pub(crate) y: Vec<T>,
    /// (tokens, width), by the inference forward
    pub(crate) inference: Vec<T>,
    /// (tokens, width): the shared experts' part of y
    pub(crate) shared: Option<Vec<T>>,
    /// (tokens, width)
    pub(crate) dx: Vec<T>,
    /// (tokens, top_k): the gradient of the weights
    pub(crate) dweights: Vec<f32>,
    /// gradients in the order of `MoeConfig::tensors`
    pub(crate) gradients: TensorList,
    /// the load-balancing loss
    pub(crate) balance_loss: f32,
    /// the z-loss
    pub(crate) z_loss: f32,
}

/// Runs a layer forward and back, and forward once more for inference.
///
/// # Errors
/// The library's; if figures contradict each other.
pub(crate) fn run_layer<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    device: &D,
    spec: &LayerSpec<T>,
    memory: MemoryPolicy,
    call: &Call<'_, T>,
) -> Result<LayerRun<T>> {
    let config = spec.config(memory)?;
    let layer = spec.load(device, &config)?;
    let width = config.width;
    let tokens = call.x.len() / width;
    let sequences = call.sequences.len().max(1);
    let mut runner = Runner::with_limits(device, &config, Limits { sequences, ..Limits::training(tokens) })?;
    let stamp = Stamp { first_token: call.first_token as u64, ..Stamp::default() };
    runner.set_batch(&Batch { sequences: call.sequences, stamp, ..Batch::default() })?;
    let x = runner.upload(ArrayView2::from_shape((tokens, width), call.x)?)?;
    let dout = runner.upload(ArrayView2::from_shape((tokens, width), call.dout)?)?;
    let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
    let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);

    runner.forward_train(&layer, &x, &mut saved, &mut y)?;
    let routing = saved.routing();
    let (logits, ids) = (read(&runner, routing.logits()?)?, read(&runner, routing.ids()?)?);
    let weights = read(&runner, routing.weights()?)?;
    let figures = runner.figures(&saved)?;
    let slots = tokens * config.top_k;
    let (routed, dropped) = (figures.routed, figures.dropped);
    ensure!(routed + dropped == slots as u64, "{routed} slots routed and {dropped} dropped of {slots}");
    ensure!(dropped == 0, "{dropped} slots dropped by a layer without a capacity");
    let outputs = flat(&runner, &y)?;
    runner.backward(&layer, &x, &mut saved, &dout, &mut dx, &mut grads)?;
    let dweights = read(&runner, runner.dweights(&saved)?)?;
    let gradients = read_all(&runner, &grads.weights)?;
    let dx = flat(&runner, &dx)?;
    runner.forward(&layer, &x, &mut y)?;
    let inference = flat(&runner, &y)?;
    let shared = match config.shared {
        Some(_) => Some(shared_alone(&mut runner, &layer, &x, &mut saved, &mut y)?),
        None => None,
    };
    Ok(LayerRun {
        logits,
        ids,
        weights,
        counts: figures.tokens_per_expert,
        y: outputs,
        inference,
        shared,
        dx,
        dweights,
        gradients,
        balance_loss: figures.balance_loss as f32,
        z_loss: figures.z_loss as f32,
    })
}

/// The shared experts' part of the output: every slot is dropped.
fn shared_alone<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    runner: &mut Runner<D, T>,
    layer: &MoeLayer<D, T>,
    x: &Rows<D, T>,
    saved: &mut Saved<D, T>,
    y: &mut Rows<D, T>,
) -> Result<Vec<T>> {
    let slots = x.dim().0 * layer.config().top_k;
    let nowhere = vec![u32::try_from(layer.config().experts)?; slots];
    runner.adopt(layer, x, &nowhere, &vec![0.0; slots], saved)?;
    runner.experts(layer, x, saved, y)?;
    flat(runner, y)
}

/// What the shared experts add to a step.
pub(crate) struct SharedRun<T> {
    /// (tokens, width)
    pub(crate) y: Vec<T>,
    /// (tokens, width)
    pub(crate) dx: Vec<T>,
    /// in the order of `MoeConfig::tensors`; only those of shared experts say something
    pub(crate) gradients: TensorList,
}

/// Runs the shared experts of a layer alone, forward and back.
///
/// # Errors
/// The library's.
pub(crate) fn run_shared<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    device: &D,
    spec: &LayerSpec<T>,
    call: &Call<'_, T>,
) -> Result<SharedRun<T>> {
    let config = spec.config(MemoryPolicy::Keep)?;
    let layer = spec.load(device, &config)?;
    let shape = (call.x.len() / config.width, config.width);
    let mut runner = Runner::new(device, &config, shape.0)?;
    let x = runner.upload(ArrayView2::from_shape(shape, call.x)?)?;
    let dout = runner.upload(ArrayView2::from_shape(shape, call.dout)?)?;
    let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
    let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
    let y = shared_alone(&mut runner, &layer, &x, &mut saved, &mut y)?;
    runner.experts_backward(&layer, &x, &mut saved, &dout, &mut dx, &mut grads)?;
    let gradients = read_all(&runner, &grads.weights)?;
    Ok(SharedRun { y, dx: flat(&runner, &dx)?, gradients })
}

/// A matrix on the host.
pub(crate) fn flat<T: Scalar, D: MoeDevice<T>, C: Collective<D>>(
    runner: &Runner<D, T, C>,
    rows: &Rows<D, T>,
) -> Result<Vec<T>> {
    Ok(runner.download(rows)?.into_raw_vec_and_offset().0)
}

/// Values of a view on the host.
pub(crate) fn read<T: Scalar, D: MoeDevice<T>, C: Collective<D>, E: Elem>(
    runner: &Runner<D, T, C>,
    view: In<'_, D, E>,
) -> Result<Vec<E>> {
    let mut values = vec![E::default(); view.len()];
    runner.session().download(view, &mut values)?;
    Ok(values)
}

/// All tensors on the host, in the order of `MoeConfig::tensors`.
pub(crate) fn read_all<T: Scalar, D: MoeDevice<T>, C: Collective<D>, E: Elem>(
    runner: &Runner<D, T, C>,
    tensors: &Tensors<D, E>,
) -> Result<[Option<Vec<E>>; moe_core::TENSORS]> {
    let mut all = [const { None }; moe_core::TENSORS];
    for (values, buffer) in all.iter_mut().zip(tensors.list()) {
        if let Some(buffer) = buffer {
            *values = Some(read(runner, whole::<D, E>(buffer))?);
        }
    }
    Ok(all)
}
