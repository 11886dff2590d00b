//! Grads: gradients in the accumulation type, and the load that balancing looks at.

use super::{MoeLayer, Tensors};
use crate::collective::Collective;
use crate::device::Device;
use crate::error::Error;
use crate::ops::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims, MoeDevice};
use crate::runner::Runner;
use crate::scalar::Scalar;
use crate::view::{whole, whole_mut};

/// Gradients of a layer's weights, accumulated over micro-batches. The first backward after
/// [`clear`](Grads::clear) overwrites, empty experts included; the following ones add.
pub struct Grads<D: Device, T: Scalar> {
    /// gradients, named like the weights
    pub weights: Tensors<D, T::Acc>,
    /// (E): slots per expert of the tokens that this rank routes, summed over the micro-batches, before drops
    pub load: D::Owned<u32>,
    pub(crate) filled: bool,
}

impl<D: Device, T: Scalar> Grads<D, T> {
    /// Forgets the gradients: the next backward overwrites them. Costs nothing.
    pub fn clear(&mut self) {
        self.filled = false;
    }

    /// Whether a backward has been here since the last [`clear`](Grads::clear).
    pub fn filled(&self) -> bool {
        self.filled
    }
}

impl<T: Scalar, D: MoeDevice<T>> MoeLayer<D, T> {
    /// Empty gradients for this layer.
    ///
    /// # Errors
    /// [`Error::Device`] if memory runs out.
    pub fn grads(&self) -> Result<Grads<D, T>, Error<D::Error>> {
        let weights = Tensors::zeroed(self.device(), self.session.stream(), &self.config)?;
        let grads = Grads { weights, load: self.session.alloc(self.config.experts)?, filled: false };
        self.session.sync()?;
        Ok(grads)
    }

    /// Moves the selection bias by the step's load, once per optimizer step (loss-free balancing). Without a bias or with
    /// rate 0 nothing happens. [`AdamW::step`](crate::AdamW::step) calls it.
    ///
    /// # Errors
    /// [`Error::State`] if no backward has filled `grads`; [`Error::Device`].
    pub fn balance<C: Collective<D>>(
        &mut self,
        runner: &mut Runner<D, T, C>,
        grads: &Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let rate = self.config.balance.bias_rate;
        let Some(bias) = &mut self.selection_bias else {
            return Ok(());
        };
        if rate == 0.0 {
            return Ok(());
        }
        if !grads.filled {
            return Err(Error::State("these gradients are empty: run backward before balance"));
        }
        runner.set_bias_rate(rate)?;
        let args = BiasUpdateArgs {
            counts: whole::<D, u32>(&grads.load),
            rate: whole::<D, T::Acc>(&runner.bias_rate.buffer),
            bias: whole_mut::<D, T::Acc>(bias),
        };
        runner.session.run::<BiasUpdate<T>>(&BiasUpdateDims { experts: self.config.experts }, args)
    }
}
