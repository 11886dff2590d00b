//! What a forward pass uploads: the stamp, sequence bounds, loss factors. Only what has changed, so that a repeated step uploads
//! nothing and a device may record it.

use super::{INFERENCE_ONLY, Runner, Saved};
use crate::collective::Collective;
use crate::config::BalanceLoss;
use crate::error::Error;
use crate::ops::{MoeDevice, Stamp};
use crate::scalar::{Accum, Scalar};
use crate::view::{first_mut, whole_mut};

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    pub(super) fn set_stamp(&mut self, saved: &mut Saved<D, T>) -> Result<(), Error<D::Error>> {
        let (config, share) = (&saved.routing.config, &saved.routing.share);
        let first_token = self.batch.stamp.first_token.wrapping_add(share.routed.start as u64);
        let stamp = Stamp { layer: config.layer, first_token, ..self.batch.stamp };
        if config.rule.stamped() && saved.routing.stamped != Some(stamp) {
            saved.routing.stamped = None;
            self.session.upload(&stamp.words(), whole_mut::<D, u32>(&mut saved.routing.stamp))?;
            saved.routing.stamped = Some(stamp);
        }
        Ok(())
    }

    /// Sequence bounds and loss factors, uploaded where a loss reads them.
    pub(super) fn set_losses(&mut self, saved: &mut Saved<D, T>) -> Result<(), Error<D::Error>> {
        let (session, batch) = (&self.session, &self.batch);
        let routing = &mut saved.routing;
        let (config, share) = (&routing.config, &routing.share);
        let filled = routing.losses_of.as_ref() == Some(share) && routing.batch.has_losses_of(batch);
        routing.batch.copy_from(batch);
        if filled {
            return Ok(());
        }
        routing.losses_of = None;
        let Some(losses) = &mut routing.losses else {
            return Err(Error::State(INFERENCE_ONLY));
        };
        let (tokens, own) = (share.total, &share.own);
        let mut end = 0;
        session.upload(&[0], first_mut::<D, u32>(&mut losses.sequences, 1)?)?;
        for s in 0..batch.count_for(config) {
            end += batch.length(config, tokens, s);
            // The part of the sequence that is this rank's own, counted from there.
            let bound = (end.clamp(own.start, own.end) - own.start) as u32;
            let place = whole_mut::<D, u32>(&mut losses.sequences).slice(s + 1..s + 2)?;
            session.upload(&[bound], place)?;
            let factor = [T::Acc::of(batch.factor(config, tokens, s))];
            session.upload(&factor, whole_mut::<D, T::Acc>(&mut losses.factors).slice(s..s + 1)?)?;
        }
        let z_factor = [T::Acc::of(batch.z_factor(config, tokens))];
        session.upload(&z_factor, whole_mut::<D, T::Acc>(&mut losses.z_factor))?;
        if matches!(config.balance.loss, Some(BalanceLoss::Batch(_))) && !batch.step_counts.is_empty() {
            session
                .upload(&batch.step_counts, first_mut::<D, u32>(&mut losses.step_counts, config.experts)?)?;
        }
        routing.losses_of = Some(share.clone());
        Ok(())
    }
}
