//! AdamW for a whole layer: moments and master weights on the device, one op per tensor.

use crate::collective::Collective;
use crate::config::MoeConfig;
use crate::device::Device;
use crate::error::Error;
use crate::layer::{Grads, MoeLayer, StateTensor, Tensors, none_left, take};
use crate::ops::{self, ADAMW_SETTINGS, AdamWArgs, AdamWDims, AdamWSettings, MoeDevice};
use crate::runner::Runner;
use crate::scalar::{DType, Elem, Scalar};
use crate::session::Session;
use crate::view::{whole, whole_mut};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// The settings that stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// decay of the first moment
    pub beta1: f64,
    /// decay of the second moment
    pub beta2: f64,
    /// added to the denominator
    pub eps: f64,
    /// decoupled weight decay, on every tensor
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// AdamW over a layer's weights, with f32 master weights where they are stored in a narrower type.
pub struct AdamW<D: Device, T: Scalar> {
    options: AdamWOptions,
    steps: u64,
    config: MoeConfig,
    settings: D::Owned<T::Acc>,
    master: Option<Tensors<D, T::Acc>>,
    m: Tensors<D, T::Acc>,
    v: Tensors<D, T::Acc>,
}

impl<T: Scalar, D: MoeDevice<T>> AdamW<D, T> {
    /// Moments of zero, and masters equal to the layer's weights.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::State`] for a layer made for inference.
    pub fn new(layer: &MoeLayer<D, T>) -> Result<Self, Error<D::Error>> {
        Self::with_options(layer, AdamWOptions::default())
    }

    /// As [`new`](Self::new), with other settings.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(layer: &MoeLayer<D, T>, options: AdamWOptions) -> Result<Self, Error<D::Error>> {
        let (session, config, weights) = (&layer.session, layer.config, layer.weights()?);
        let zeroed = || Tensors::<D, T::Acc>::zeroed(session.device(), session.stream(), &config);
        let mut master = None;
        if T::DTYPE != T::Acc::DTYPE {
            let mut tensors = zeroed()?;
            for (from, to) in weights.list().into_iter().zip(tensors.list_mut()) {
                if let (Some(from), Some(to)) = (from, to) {
                    widen::<T, D>(session, from, to)?;
                }
            }
            master = Some(tensors);
        }
        let settings = session.alloc(ADAMW_SETTINGS)?;
        let adam = Self { options, steps: 0, config, settings, master, m: zeroed()?, v: zeroed()? };
        session.sync()?;
        Ok(adam)
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One optimizer step: weights, packing, selection bias; empties `grads`.
    ///
    /// # Errors
    /// [`Error::State`] if `grads` are empty or of another layer; [`Error::Device`]. After an error in the middle the layer
    /// is stale.
    pub fn step<C: Collective<D>>(
        &mut self,
        runner: &mut Runner<D, T, C>,
        layer: &mut MoeLayer<D, T>,
        grads: &mut Grads<D, T>,
        lr: f64,
    ) -> Result<(), Error<D::Error>> {
        self.step_scaled(runner, layer, grads, lr, 1.0)
    }

    /// As [`step`](Self::step) with gradients multiplied by `scale`: clipping by norm, or a loss scale.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_scaled<C: Collective<D>>(
        &mut self,
        runner: &mut Runner<D, T, C>,
        layer: &mut MoeLayer<D, T>,
        grads: &mut Grads<D, T>,
        lr: f64,
        scale: f64,
    ) -> Result<(), Error<D::Error>> {
        if !grads.filled() {
            return Err(Error::State("these gradients are empty: run backward before the step"));
        }
        if self.config.tensors() != layer.config.tensors() {
            return Err(Error::State("this optimizer was made for a layer of other sizes"));
        }
        let sizes = layer.config.tensors().map(|spec| spec.map(|spec| spec.len()));
        if sizes != grads.weights.list().map(|grad| grad.map(|grad| whole::<D, T::Acc>(grad).len())) {
            return Err(Error::State("these gradients are those of a layer of other sizes"));
        }
        let device = runner.device().clone();
        device.enter(|| {
            let AdamWOptions { beta1, beta2, eps, weight_decay } = self.options;
            let step = self.steps + 1;
            let settings = AdamWSettings { lr, beta1, beta2, eps, weight_decay, step, scale };
            let Self { settings: buffer, master, m, v, .. } = self;
            layer.update(runner, |weights, session| {
                session.upload(&settings.words::<T::Acc>(), whole_mut::<D, T::Acc>(buffer))?;
                let mut masters = master.as_mut().map(Tensors::list_mut);
                let lists = weights.list_mut().into_iter().zip(grads.weights.list());
                let moments = m.list_mut().into_iter().zip(v.list_mut());
                for (at, ((w, grad), (m, v))) in lists.zip(moments).enumerate() {
                    let (Some(w), Some(grad), Some(m), Some(v)) = (w, grad, m, v) else {
                        continue;
                    };
                    let master = masters.as_mut().and_then(|masters| masters[at].as_mut());
                    let args = AdamWArgs {
                        settings: whole::<D, T::Acc>(buffer),
                        grad: whole::<D, T::Acc>(grad),
                        w: whole_mut::<D, T>(w),
                        master: master.map(|master| whole_mut::<D, T::Acc>(master)),
                        m: whole_mut::<D, T::Acc>(m),
                        v: whole_mut::<D, T::Acc>(v),
                    };
                    let len = args.w.len();
                    session.run::<ops::AdamW<T>>(&AdamWDims { len }, args)?;
                }
                Ok(())
            })?;
            // Last, so that a step which failed above and is tried again moves the bias once.
            layer.balance(runner, grads)?;
            self.steps = step;
            grads.clear();
            Ok(())
        })
    }

    /// Moments, masters and the number of steps, by name.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn state(&self, layer: &MoeLayer<D, T>) -> Result<Vec<StateTensor>, Error<D::Error>> {
        let steps = [self.steps as u32, (self.steps >> 32) as u32];
        let mut all = vec![StateTensor {
            name: STEPS.to_owned(),
            shape: vec![2],
            dtype: DType::U32,
            bytes: bytemuck::cast_slice(&steps).to_vec(),
        }];
        let sets = [("m", Some(&self.m)), ("v", Some(&self.v)), ("master", self.master.as_ref())];
        for (set, tensors) in sets {
            let Some(tensors) = tensors else { continue };
            for (spec, buffer) in self.config.tensors().iter().zip(tensors.list()) {
                if let (Some(spec), Some(buffer)) = (spec, buffer) {
                    let name = format!("{set}.{}", spec.name);
                    all.push(StateTensor::read::<T::Acc, D>(&layer.session, name, spec.shape(), buffer)?);
                }
            }
        }
        Ok(all)
    }

    /// The optimizer of `layer` from its tensors, in any order.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a tensor is missing, surplus, or of another shape or type; [`Error::Device`].
    pub fn from_state(
        layer: &MoeLayer<D, T>,
        options: AdamWOptions,
        tensors: impl IntoIterator<Item = StateTensor>,
    ) -> Result<Self, Error<D::Error>> {
        let mut adam = Self::with_options(layer, options)?;
        let mut tensors: Vec<StateTensor> = tensors.into_iter().collect();
        let steps = take(&mut tensors, STEPS)?;
        let StateTensor { name, shape, dtype, bytes } = steps;
        if dtype != DType::U32 || shape != [2] || bytes.len() != 8 {
            let problem = format!("wanted u32 [2] in 8 bytes, got {dtype} {shape:?} in {}", bytes.len());
            return Err(Error::Checkpoint { name, problem });
        }
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        adam.steps = u64::from(words[0]) | u64::from(words[1]) << 32;
        let sets = [("m", Some(&mut adam.m)), ("v", Some(&mut adam.v)), ("master", adam.master.as_mut())];
        for (set, buffers) in sets {
            let Some(buffers) = buffers else { continue };
            for (spec, buffer) in adam.config.tensors().iter().zip(buffers.list_mut()) {
                if let (Some(spec), Some(buffer)) = (spec, buffer) {
                    let tensor = take(&mut tensors, &format!("{set}.{}", spec.name))?;
                    tensor.write::<T::Acc, D>(&layer.session, spec.shape(), buffer)?;
                }
            }
        }
        none_left(&tensors)?;
        // A runner's stream will write what the layer's has just filled.
        layer.session.sync()?;
        Ok(adam)
    }
}

const STEPS: &str = "steps";

/// Copies weights to their masters by way of the host: once, when an optimizer is made.
fn widen<T: Scalar, D: Device>(
    session: &Session<D>,
    from: &D::Owned<T>,
    to: &mut D::Owned<T::Acc>,
) -> Result<(), Error<D::Error>> {
    let view = whole::<D, T>(from);
    let mut narrow = vec![T::default(); view.len()];
    session.download(view, &mut narrow)?;
    let wide: Vec<T::Acc> = narrow.into_iter().map(Scalar::widen).collect();
    session.upload(&wide, whole_mut::<D, T::Acc>(to))
}
