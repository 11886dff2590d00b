//! RouteBwd: the gradient of the logits.
//!
//! Three things meet here: the gradient of the K weights, the load-balancing loss, and the z-loss. The first two enter at
//! the scores: with p = score / (sum + 1e-20) the loss is `sum over s, e of factor[s] * counts[s, e] * prob_sums[s, e]`, so
//! `dL/dp[t, e] = factor[s] * counts[s, e]` (counts carry no gradient: DeepSeek-V3, eqs 17-20). The loss value is added to
//! no output, so pipelines stay correct. z: `z_factor * sum over t of logsumexp^2`.

use super::route_stats::{log_sum_exp, loss_score};
use super::{NO_ROW, RouteRule, ScoreFunction, scores, sum_over_experts};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, check_offsets, expect, within};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View};
use alloc::vec;
use alloc::vec::Vec;
use core::marker::PhantomData;

/// Gradient of the logits, for storage type `T`.
pub struct RouteBwd<T>(PhantomData<T>);

/// Sizes and settings of [`RouteBwd`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteBwdDims {
    /// T
    pub tokens: usize,
    /// E
    pub experts: usize,
    /// K
    pub top_k: usize,
    /// S, of the load-balancing loss; 0 without one
    pub sequences: usize,
    /// the router
    pub rule: RouteRule,
    /// add to `load` instead of overwriting it
    pub accumulate: bool,
}

/// The load-balancing loss of [`RouteBwd`].
pub struct Aux<'a, D: Device, A: Accum> {
    /// (sequences + 1): first token of each sequence
    pub sequences: In<'a, D, u32>,
    /// (sequences, experts): slots per expert, summed over all ranks that hold part of the sequence
    pub counts: In<'a, D, u32>,
    /// (sequences): what a count is multiplied with
    pub factors: In<'a, D, A>,
}

/// Views of [`RouteBwd`].
pub struct RouteBwdArgs<'a, D: Device, T: Scalar> {
    /// (tokens, experts)
    pub logits: In<'a, D, T::Acc>,
    /// (tokens, top_k)
    pub ids: In<'a, D, u32>,
    /// (tokens, top_k)
    pub dweights: In<'a, D, T::Acc>,
    /// (tokens * top_k): a slot without a row has the gradient 0, whatever `dweights` holds there
    pub row_of_slot: Option<In<'a, D, u32>>,
    /// load-balancing loss
    pub aux: Option<Aux<'a, D, T::Acc>>,
    /// (1): coefficient of the sum of squared logsumexp
    pub z_factor: Option<In<'a, D, T::Acc>>,
    /// (experts), overwritten or added to: slots per expert, what loss-free balancing looks at
    pub load: Option<Out<'a, D, u32>>,
    /// (tokens, experts), overwritten
    pub dlogits: Out<'a, D, T::Acc>,
}

impl<T: Scalar> Op for RouteBwd<T> {
    const ID: OpId = OpId("route_bwd");
    type Dims = RouteBwdDims;
    type Args<'a, D: Device> = RouteBwdArgs<'a, D, T>;

    fn check<D: Device>(dims: &RouteBwdDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        let RouteBwdDims { tokens, experts, top_k, sequences, .. } = *dims;
        within(Self::ID, "experts", 1, i32::MAX as usize, experts)?;
        within(Self::ID, "sequences", 0, i32::MAX as usize, sequences)?;
        expect(Self::ID, "logits", &[tokens, experts], args.logits.len())?;
        expect(Self::ID, "ids", &[tokens, top_k], args.ids.len())?;
        expect(Self::ID, "dweights", &[tokens, top_k], args.dweights.len())?;
        if let Some(rows) = &args.row_of_slot {
            expect(Self::ID, "row_of_slot", &[tokens, top_k], rows.len())?;
        }
        if let Some(aux) = &args.aux {
            expect(Self::ID, "sequences", &[sequences + 1], aux.sequences.len())?;
            expect(Self::ID, "counts", &[sequences, experts], aux.counts.len())?;
            expect(Self::ID, "factors", &[sequences], aux.factors.len())?;
        }
        if let Some(factor) = &args.z_factor {
            expect(Self::ID, "z_factor", &[1], factor.len())?;
        }
        if let Some(load) = &args.load {
            expect(Self::ID, "load", &[experts], load.len())?;
        }
        expect(Self::ID, "dlogits", &[tokens, experts], args.dlogits.len())
    }

    fn reference(dims: &RouteBwdDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let RouteBwdDims { tokens, experts, top_k, rule, .. } = *dims;
        let (logits, ids, dweights) = (args.logits.host(), args.ids.host(), args.dweights.host());
        let rows = args.row_of_slot.map(View::host);
        let aux = args.aux.map(|aux| (aux.sequences.host(), aux.counts.host(), aux.factors.host()));
        if let Some((bounds, ..)) = aux {
            check_offsets(Self::ID, bounds, tokens)?;
        }
        let z_factor = args.z_factor.map(|factor| factor.host()[0]);
        if let Some(load) = args.load {
            let load = load.host();
            if !dims.accumulate {
                load.fill(0);
            }
            for &id in ids {
                if let Some(load) = load.get_mut(id as usize) {
                    *load = load.saturating_add(1);
                }
            }
        }
        let dlogits = args.dlogits.host();
        for token in 0..tokens {
            let logits = &logits[token * experts..][..experts];
            let out = &mut dlogits[token * experts..][..experts];
            let slots = token * top_k..(token + 1) * top_k;
            let chosen: Vec<(usize, T::Acc)> = slots
                .map(|slot| {
                    let dropped = rows.is_some_and(|rows| rows[slot] == NO_ROW);
                    (ids[slot] as usize, if dropped { T::Acc::ZERO } else { dweights[slot] })
                })
                .collect();
            out.copy_from_slice(&through_weights(&rule, logits, &chosen));
            if let Some((bounds, counts, factors)) = aux {
                let sequence = bounds.windows(2).position(|b| (b[0]..b[1]).contains(&(token as u32)));
                if let Some(s) = sequence {
                    let dp: Vec<T::Acc> = counts[s * experts..][..experts]
                        .iter()
                        .map(|count| factors[s] * T::Acc::count(*count as usize))
                        .collect();
                    add(out, &through_probabilities(rule.score, logits, &dp));
                }
            }
            if let Some(factor) = z_factor {
                let z = log_sum_exp(logits);
                for (out, score) in out.iter_mut().zip(scores(ScoreFunction::Softmax, logits)) {
                    *out += T::Acc::of(2.0) * factor * z * score;
                }
            }
        }
        Ok(())
    }
}

fn add<A: Accum>(out: &mut [A], more: &[A]) {
    out.iter_mut().zip(more).for_each(|(out, more)| *out += *more);
}

/// From gradients of a token's weights, as (id, gradient), to gradients of its logits.
fn through_weights<A: Accum>(rule: &RouteRule, logits: &[A], chosen: &[(usize, A)]) -> Vec<A> {
    let experts = logits.len();
    let scale = A::of(rule.scale.into());
    let chosen = || chosen.iter().copied().filter(|(id, _)| *id < experts);
    let mut out = vec![A::ZERO; experts];
    if rule.score == ScoreFunction::SoftmaxTopK {
        let picked: Vec<A> = chosen().map(|(id, _)| logits[id]).collect();
        let weights = scores(ScoreFunction::Softmax, &picked);
        let mut dot = A::ZERO;
        for ((_, dw), weight) in chosen().zip(&weights) {
            dot += scale * dw * *weight;
        }
        for ((id, dw), weight) in chosen().zip(&weights) {
            out[id] += *weight * (scale * dw - dot);
        }
        return out;
    }
    let scores = scores(rule.score, logits);
    let (mut sum, mut dot) = (A::ZERO, A::ZERO);
    for (id, dw) in chosen() {
        sum += scores[id];
        dot += dw * scores[id];
    }
    let sum = sum + A::of(1e-20);
    for (id, dw) in chosen() {
        out[id] += scale * if rule.normalize { (dw - dot / sum) / sum } else { dw };
    }
    through_scores(rule.score, logits, &scores, &mut out);
    out
}

/// From gradients of p = score / (sum + 1e-20) to gradients of the logits.
fn through_probabilities<A: Accum>(score: ScoreFunction, logits: &[A], dp: &[A]) -> Vec<A> {
    let score = loss_score(score);
    let scores = scores(score, logits);
    let sum = sum_over_experts(scores.iter().copied()) + A::of(1e-20);
    let dot = sum_over_experts(dp.iter().zip(&scores).map(|(dp, score)| *dp * *score)) / sum;
    let mut out: Vec<A> = dp.iter().map(|dp| (*dp - dot) / sum).collect();
    through_scores(score, logits, &scores, &mut out);
    out
}

/// From gradients of the scores to gradients of the logits, in place. A sigmoid that has rounded to 1 still has a slope, so
/// that `1 - score` is taken as the sigmoid of the negative logit.
fn through_scores<A: Accum>(function: ScoreFunction, logits: &[A], scores: &[A], grad: &mut [A]) {
    if function == ScoreFunction::Sigmoid {
        for ((grad, score), logit) in grad.iter_mut().zip(scores).zip(logits) {
            *grad *= *score * (-*logit).fixed_sigmoid();
        }
    } else {
        let dot = sum_over_experts(grad.iter().zip(scores).map(|(grad, score)| *grad * *score));
        for (grad, score) in grad.iter_mut().zip(scores) {
            *grad = *score * (*grad - dot);
        }
    }
}
