//! Auxiliary losses of a step whose tokens are spread over processes: counts of the whole step, everything else local.

use crate::verify::aux::{Sizes, Tokens, value};
use crate::verify::gradient::{GateGradients, Losses, gate_gradients};
use crate::verify::layer_spec::LayerSpec;
use crate::verify::rig::Rig;
use crate::verify::routing::Router;
use anyhow::Result;
use moe_core::ops::RouteDims;
use moe_core::{BalanceLoss, MoeDevice, Scalar};
use std::ops::Range;

/// The losses of a step.
pub(super) struct StepLosses {
    tokens: Tokens,
    /// tokens of a sequence of the balancing loss
    length: usize,
    /// (sequences, experts), of the whole step
    counts: Vec<u32>,
    /// what a count is multiplied with; `None` without a balancing loss
    factor: Option<f32>,
    /// what a squared logsumexp is multiplied with; `None` without a z-loss
    z_factor: Option<f32>,
}

/// The losses of some of the step's tokens.
pub(super) struct PartLosses<T> {
    /// balancing loss
    pub(super) balance: Option<f32>,
    /// z-loss
    pub(super) z: Option<f32>,
    /// what the losses add to the gradients of x, gate and gate bias
    pub(super) gate: GateGradients<T>,
}

impl StepLosses {
    /// The losses of all tokens `x`; `None` if the layer has none.
    ///
    /// # Errors
    /// The library's.
    pub(super) fn of<T, D>(rig: &Rig<D>, spec: &LayerSpec<T>, x: &[T]) -> Result<Option<Self>>
    where
        T: Scalar<Acc = f32>,
        D: MoeDevice<T> + MoeDevice<f32>,
    {
        let RouteDims { tokens, experts, top_k, rule, .. } = spec.router.dims;
        let balance = spec.balance;
        if balance.loss.is_none() && balance.z_loss == 0.0 {
            return Ok(None);
        }
        let (coeff, length) = match balance.loss {
            Some(BalanceLoss::Sequence(coeff)) => {
                (coeff, spec.sequences(tokens)?.first().copied().unwrap_or(tokens))
            }
            Some(BalanceLoss::Batch(coeff)) => (coeff, tokens),
            None => (0.0, tokens),
        };
        let routed = spec.router.route(rig, x)?;
        let sizes = Sizes {
            sequences: tokens / length,
            length,
            experts,
            top_k,
            coeff: coeff.into(),
            score: rule.score,
        };
        let all = Tokens { sizes, logits: routed.logits, ids: routed.ids };
        let counts = all.stats(rig, &all.bounds(length)?)?.counts;
        Ok(Some(Self {
            tokens: all,
            length,
            counts,
            factor: balance.loss.map(|_| sizes.per_sequence(sizes.sequences)),
            z_factor: (balance.z_loss != 0.0).then(|| balance.z_loss / tokens as f32),
        }))
    }

    /// The losses of the tokens `own`, and their gradients.
    ///
    /// # Errors
    /// The library's.
    pub(super) fn part<T, D>(
        &self,
        rig: &Rig<D>,
        spec: &LayerSpec<T>,
        x: &[T],
        own: Range<usize>,
    ) -> Result<PartLosses<T>>
    where
        T: Scalar<Acc = f32>,
        D: MoeDevice<T> + MoeDevice<f32>,
    {
        let sizes = self.tokens.sizes;
        let (experts, top_k) = (sizes.experts, sizes.top_k);
        let local = Tokens {
            sizes,
            logits: self.tokens.logits[own.start * experts..own.end * experts].to_vec(),
            ids: self.tokens.ids[own.start * top_k..own.end * top_k].to_vec(),
        };
        // Every sequence of the step, cut to the tokens that are here; most are empty.
        let cut = |sequence: usize| (sequence * self.length).clamp(own.start, own.end) - own.start;
        let bounds: Vec<u32> =
            (0..=sizes.sequences).map(|at| u32::try_from(cut(at))).collect::<Result<_, _>>()?;
        let stats = local.stats(rig, &bounds)?;
        let factor = self.factor.unwrap_or(0.0);
        let losses = Losses {
            sequences: &bounds,
            counts: &self.counts,
            factors: &vec![factor; sizes.sequences],
            z_factor: self.z_factor,
        };
        let dlogits = local.gradient(rig, &losses, None)?;
        let width = spec.router.dims.width;
        let dims = RouteDims { tokens: own.len(), ..spec.router.dims };
        let router = Router { dims, ..spec.router.clone() };
        Ok(PartLosses {
            balance: self.factor.map(|factor| value(factor, &self.counts, &stats.prob_sums)),
            z: self.z_factor.map(|factor| factor * stats.z_sum),
            gate: gate_gradients(rig, &router, &x[own.start * width..own.end * width], &dlogits)?,
        })
    }
}
