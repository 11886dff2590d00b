//! Tensors: one buffer per parameter, with the same names for weights, gradients and moments.

use crate::config::{MoeConfig, TENSORS};
use crate::device::Device;
use crate::error::Error;
use crate::scalar::Elem;

/// One buffer per parameter of a layer. Shapes: [`MoeConfig::tensors`].
pub struct Tensors<D: Device, E: Elem> {
    /// (E, D)
    pub gate: D::Owned<E>,
    /// (E)
    pub gate_bias: Option<D::Owned<E>>,
    /// (E, 2F, D): gate half, then up half; (E, F, D) for ungated experts
    pub w13: D::Owned<E>,
    /// (E, 2F)
    pub b13: Option<D::Owned<E>>,
    /// (E, D, F)
    pub w2: D::Owned<E>,
    /// (E, D)
    pub b2: Option<D::Owned<E>>,
    /// shared experts
    pub shared: Option<SharedTensors<D, E>>,
}

/// The shared experts' part of [`Tensors`], with Fs their hidden width.
pub struct SharedTensors<D: Device, E: Elem> {
    /// (2Fs, D), or (Fs, D)
    pub w13: D::Owned<E>,
    /// (D, Fs)
    pub w2: D::Owned<E>,
    /// (1, D)
    pub gate: Option<D::Owned<E>>,
}

impl<D: Device, E: Elem> Tensors<D, E> {
    /// Zeros.
    pub(crate) fn zeroed(
        device: &D,
        stream: &D::Stream,
        config: &MoeConfig,
    ) -> Result<Self, Error<D::Error>> {
        let specs = config.tensors();
        let alloc = |at: usize| -> Result<Option<D::Owned<E>>, Error<D::Error>> {
            match specs[at] {
                Some(spec) => device.alloc(stream, spec.len()).map(Some).map_err(Error::Device),
                None => Ok(None),
            }
        };
        let always = |at: usize| alloc(at).and_then(|buffer| buffer.ok_or(Error::State("no such tensor")));
        let shared = match config.shared {
            Some(_) => Some(SharedTensors { w13: always(6)?, w2: always(7)?, gate: alloc(8)? }),
            None => None,
        };
        Ok(Self {
            gate: always(0)?,
            gate_bias: alloc(1)?,
            w13: always(2)?,
            b13: alloc(3)?,
            w2: always(4)?,
            b2: alloc(5)?,
            shared,
        })
    }

    /// The buffers in the order of [`MoeConfig::tensors`].
    pub fn list(&self) -> [Option<&D::Owned<E>>; TENSORS] {
        let shared = self.shared.as_ref();
        [
            Some(&self.gate),
            self.gate_bias.as_ref(),
            Some(&self.w13),
            self.b13.as_ref(),
            Some(&self.w2),
            self.b2.as_ref(),
            shared.map(|shared| &shared.w13),
            shared.map(|shared| &shared.w2),
            shared.and_then(|shared| shared.gate.as_ref()),
        ]
    }

    /// The buffers in the order of [`MoeConfig::tensors`], to be changed.
    pub fn list_mut(&mut self) -> [Option<&mut D::Owned<E>>; TENSORS] {
        let (shared_w13, shared_w2, shared_gate) = match &mut self.shared {
            Some(shared) => (Some(&mut shared.w13), Some(&mut shared.w2), shared.gate.as_mut()),
            None => (None, None, None),
        };
        [
            Some(&mut self.gate),
            self.gate_bias.as_mut(),
            Some(&mut self.w13),
            self.b13.as_mut(),
            Some(&mut self.w2),
            self.b2.as_mut(),
            shared_w13,
            shared_w2,
            shared_gate,
        ]
    }
}
