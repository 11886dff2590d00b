//! Figures: what a caller can read of a step.

use super::saved::Routing;
use super::{Runner, Saved};
use crate::collective::Collective;
use crate::device::Device;
use crate::error::Error;
use crate::ops::MoeDevice;
use crate::scalar::{Accum, Scalar};
use crate::view::first;
use alloc::vec::Vec;

/// Balance and losses of one forward pass. Counts are slots of the tokens that this rank routes, taken before any was dropped;
/// losses are the parts of this rank's own tokens, which over all ranks add up to the step's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// (E): slots that chose each expert
    pub tokens_per_expert: Vec<u32>,
    /// (most loaded expert - mean) / mean: 0 at perfect balance (Wang et al., 2024: MaxVio)
    pub max_violation: f64,
    /// entropy of the load over ln E: 1 at perfect balance, 0 if one expert has all
    pub load_entropy: f64,
    /// slots that have a row
    pub routed: u64,
    /// slots that have none; routed + dropped = T * K for the T tokens that this rank routes
    pub dropped: u64,
    /// logits that were NaN or infinite
    pub non_finite: u64,
    /// load-balancing loss of this call, with its coefficient; 0 in inference
    pub balance_loss: f64,
    /// z-loss of this call, with its coefficient; 0 in inference
    pub z_loss: f64,
}

impl Figures {
    /// Sets MaxVio and entropy to those of `tokens_per_expert`: after counts of several ranks or micro-batches were added up.
    pub fn set_load(&mut self) {
        let load = &self.tokens_per_expert;
        let (experts, total) = (load.len() as f64, load.iter().map(|n| f64::from(*n)).sum::<f64>());
        let most = load.iter().copied().max().map_or(0.0, f64::from);
        let entropy = |count: &u32| match f64::from(*count) / total {
            share if share > 0.0 => -share * libm::log(share),
            _ => 0.0,
        };
        self.max_violation = if total > 0.0 { most * experts / total - 1.0 } else { 0.0 };
        self.load_entropy = if total > 0.0 && load.len() > 1 {
            load.iter().map(entropy).sum::<f64>() / libm::log(experts)
        } else {
            1.0
        };
    }
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Figures of the forward pass in `saved`; waits for the device.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn figures(&self, saved: &Saved<D, T>) -> Result<Figures, Error<D::Error>> {
        let mut figures = self.load_figures(&saved.routing)?;
        let routing = &saved.routing;
        let (Some(losses), false) = (&routing.losses, saved.adopted) else {
            return Ok(figures);
        };
        let (config, batch) = (&routing.config, &routing.batch);
        let (experts, sequences) = (config.experts, batch.count_for(config));
        if config.balance.loss.is_some() {
            let mut counts = self.read_all::<u32>(&losses.counts, sequences * experts)?;
            let sums = self.read_all::<T::Acc>(&losses.prob_sums, sequences * experts)?;
            if !batch.step_counts.is_empty() && sequences == 1 {
                counts.copy_from_slice(&batch.step_counts);
            }
            for s in 0..sequences {
                let products = counts.iter().zip(&sums).skip(s * experts).take(experts);
                let sum: f64 = products.map(|(count, sum)| f64::from(*count) * sum.to_f64()).sum();
                figures.balance_loss += batch.factor(config, routing.share.total, s) * sum;
            }
        }
        if config.balance.z_loss > 0.0 {
            let z_sum = self.read_all::<T::Acc>(&losses.z_sum, 1)?;
            figures.z_loss = batch.z_factor(config, routing.share.total) * z_sum[0].to_f64();
        }
        Ok(figures)
    }

    /// Figures of the last inference [`forward`](Self::forward); waits for the device.
    ///
    /// # Errors
    /// [`Error::State`] before the first forward; [`Error::Device`].
    pub fn forward_figures(&self) -> Result<Figures, Error<D::Error>> {
        match &self.inference {
            Some(saved) => self.load_figures(&saved.routing),
            None => Err(Error::State("the runner's inference buffers are in use")),
        }
    }

    fn load_figures(&self, routing: &Routing<D, T>) -> Result<Figures, Error<D::Error>> {
        let experts = routing.config.experts;
        let one = |buffer| Ok::<_, Error<D::Error>>(u64::from(self.read_all::<u32>(buffer, 1)?[0]));
        let mut figures = Figures {
            tokens_per_expert: self.read_all::<u32>(&routing.counts, experts)?,
            dropped: one(&routing.dropped)?,
            non_finite: one(&routing.non_finite)?,
            ..Figures::default()
        };
        figures.routed = (routing.tokens() * routing.config.top_k) as u64 - figures.dropped;
        figures.set_load();
        Ok(figures)
    }

    fn read_all<E: crate::Elem>(
        &self,
        buffer: &<D as Device>::Owned<E>,
        len: usize,
    ) -> Result<Vec<E>, Error<D::Error>> {
        let mut values = alloc::vec![E::default(); len];
        self.session.download(first::<D, E>(buffer, len)?, &mut values)?;
        Ok(values)
    }
}
