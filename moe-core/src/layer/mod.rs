//! MoeLayer: weights, their packed forms, and the selection bias. Shared by reference; changed only by `update`.

mod grads;
mod init;
mod packed;
mod state;
mod tensors;

pub use grads::Grads;
pub use state::StateTensor;
pub use tensors::{SharedTensors, Tensors};

pub(crate) use state::{none_left, take};

use crate::collective::Collective;
use crate::config::MoeConfig;
use crate::device::Device;
use crate::error::Error;
use crate::ops::MoeDevice;
use crate::runner::{Plan, Runner};
use crate::scalar::Scalar;
use crate::session::Session;
use packed::{Packed, pack_all};

/// A Mixture-of-Experts layer on device `D` with weights of storage type `T`.
pub struct MoeLayer<D: Device, T: Scalar> {
    pub(crate) config: MoeConfig,
    pub(crate) session: Session<D>,
    pub(crate) weights: Tensors<D, T>,
    pub(crate) packed: (Packed<D>, Option<Packed<D>>),
    pub(crate) selection_bias: Option<D::Owned<T::Acc>>,
    stale: bool,
    inference_only: bool,
}

impl<T: Scalar, D: MoeDevice<T>> MoeLayer<D, T> {
    /// A layer of zeros, not packed yet.
    fn zeroed(device: &D, config: &MoeConfig) -> Result<Self, Error<D::Error>> {
        config.validate()?;
        let session = Session::new(device, Plan::empty(config).scratch_forward::<T, D>(device))?;
        let weights = Tensors::zeroed(device, session.stream(), config)?;
        let packed = Packed::of::<T>(&session, config)?;
        let selection_bias = if config.selection_bias { Some(session.alloc(config.experts)?) } else { None };
        Ok(Self {
            config: *config,
            session,
            weights,
            packed,
            selection_bias,
            stale: true,
            inference_only: false,
        })
    }

    /// The description it was made from.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// The device it lives on.
    pub fn device(&self) -> &D {
        self.session.device()
    }

    /// The weights.
    ///
    /// # Errors
    /// [`Error::State`] after [`into_inference`](Self::into_inference).
    pub fn weights(&self) -> Result<&Tensors<D, T>, Error<D::Error>> {
        self.for_training()?;
        Ok(&self.weights)
    }

    /// Per-expert bias (E) that takes part in selection only; moved by [`balance`](Self::balance).
    pub fn selection_bias(&self) -> Option<&D::Owned<T::Acc>> {
        self.selection_bias.as_ref()
    }

    /// Changes weights, in the one way there is: marks them stale, runs `change`, packs again. If either fails, forward
    /// and backward return [`Error::Stale`] until an update succeeds.
    ///
    /// # Errors
    /// What `change` or packing return; [`Error::State`] after [`into_inference`](Self::into_inference).
    pub fn update<R, C: Collective<D>>(
        &mut self,
        runner: &mut Runner<D, T, C>,
        change: impl FnOnce(&mut Tensors<D, T>, &mut Session<D>) -> Result<R, Error<D::Error>>,
    ) -> Result<R, Error<D::Error>> {
        self.for_training()?;
        runner.accepts(&self.config)?;
        self.stale = true;
        let result = change(&mut self.weights, &mut runner.session)?;
        pack_all(&mut runner.session, &mut self.packed, &self.weights)?;
        self.stale = false;
        Ok(result)
    }

    /// Frees what inference does not read: layouts of backward, and weights that are packed. The layer can then run
    /// [`Runner::forward`] alone.
    ///
    /// # Errors
    /// [`Error::Stale`]; [`Error::Device`].
    pub fn into_inference(mut self) -> Result<Self, Error<D::Error>> {
        self.fresh()?;
        self.inference_only = true;
        self.session.sync()?;
        let drop_packed = |packed: &mut Packed<D>, w13: &mut D::Owned<T>, w2: &mut D::Owned<T>| {
            packed.keep_forward();
            for (layout, plain) in [(&packed.up, w13), (&packed.down, w2)] {
                if layout.exists() {
                    *plain = self.session.alloc(0)?;
                }
            }
            Ok::<(), Error<D::Error>>(())
        };
        drop_packed(&mut self.packed.0, &mut self.weights.w13, &mut self.weights.w2)?;
        if let (Some(packed), Some(shared)) = (&mut self.packed.1, &mut self.weights.shared) {
            drop_packed(packed, &mut shared.w13, &mut shared.w2)?;
        }
        Ok(self)
    }

    pub(crate) fn fresh(&self) -> Result<(), Error<D::Error>> {
        if self.stale { Err(Error::Stale) } else { Ok(()) }
    }

    pub(crate) fn for_training(&self) -> Result<(), Error<D::Error>> {
        if self.inference_only {
            return Err(Error::State("this layer was made for inference: it can only run forward"));
        }
        Ok(())
    }

    /// Packs for the first time.
    fn pack(mut self) -> Result<Self, Error<D::Error>> {
        pack_all(&mut self.session, &mut self.packed, &self.weights)?;
        self.session.sync()?;
        self.stale = false;
        Ok(self)
    }
}
