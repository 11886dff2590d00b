//! The gradients of one token's logits.

use crate::exact::sigmoid;
use crate::gemm::{SLACK, Scratch, bytes};
use crate::scores::{Powers, of_losses, padded, score, softmax, sum};
use moe_core::Accum;
use moe_core::ops::{NO_ROW, RouteBwdDims, ScoreFunction};

/// The load-balancing loss.
#[derive(Clone, Copy)]
pub(super) struct Balance<'a> {
    pub(super) bounds: &'a [u32],
    pub(super) counts: &'a [u32],
    pub(super) factors: &'a [f32],
}

/// What all tasks read.
pub(super) struct Work<'a> {
    pub(super) dims: &'a RouteBwdDims,
    pub(super) logits: &'a [f32],
    pub(super) ids: &'a [u32],
    pub(super) dweights: &'a [f32],
    pub(super) rows: Option<&'a [u32]>,
    pub(super) balance: Option<Balance<'a>>,
    pub(super) z_factor: Option<f32>,
}

/// A token's scores by one function at a time, not made twice.
struct Scores<'a> {
    row: &'a mut [f32],
    /// the function whose scores the row holds
    function: Option<ScoreFunction>,
    /// of the softmax
    powers: Powers,
}

impl Scores<'_> {
    /// The padded row of scores.
    #[inline(always)]
    fn of(&mut self, function: ScoreFunction, logits: &[f32]) -> &[f32] {
        if self.function != Some(function) {
            self.function = Some(function);
            self.row[..logits.len()].copy_from_slice(logits);
            if function == ScoreFunction::Softmax {
                self.powers = softmax(self.row, logits.len());
            } else {
                score(function, self.row, logits.len());
            }
        }
        self.row
    }
}

/// A worker's memory for one token.
pub(super) struct Space<'a> {
    scores: Scores<'a>,
    grad: &'a mut [f32],
    /// the chosen logits, and then their weights
    picked: &'a mut [f32],
}

impl<'a> Space<'a> {
    pub(super) fn bytes(dims: &RouteBwdDims) -> usize {
        SLACK + 2 * bytes::<f32>(padded(dims.experts)) + bytes::<f32>(padded(dims.top_k))
    }

    pub(super) fn new(dims: &RouteBwdDims, memory: &'a mut [u8]) -> Self {
        let mut scratch = Scratch::new(memory);
        let [row, grad, picked] =
            [dims.experts, dims.experts, dims.top_k].map(|len| scratch.take(padded(len)));
        Self { scores: Scores { row, function: None, powers: Powers { max: 0.0, sum: 0.0 } }, grad, picked }
    }
}

impl Work<'_> {
    /// The gradient of a token's logits, from its weights and the losses.
    #[inline(always)]
    pub(super) fn gradient(&self, token: usize, space: &mut Space<'_>, out: &mut [f32]) {
        let experts = self.dims.experts;
        let logits = &self.logits[token * experts..][..experts];
        space.scores.function = None;
        if self.dims.rule.score == ScoreFunction::SoftmaxTopK {
            self.through_chosen(token, logits, space.picked, out);
        } else {
            self.through_weights(token, logits, space, out);
        }
        if let Some(balance) = self.balance {
            self.through_probabilities(balance, token, logits, space, out);
        }
        if let Some(factor) = self.z_factor {
            space.scores.of(ScoreFunction::Softmax, logits);
            let Powers { max, sum } = space.scores.powers;
            let slope = 2.0 * factor * (max + sum.fixed_ln());
            out.iter_mut().zip(&*space.scores.row).for_each(|(out, score)| *out += slope * score);
        }
    }

    /// A token's chosen experts with the gradients of their weights. A dropped slot has the gradient 0.
    #[inline(always)]
    fn chosen(&self, token: usize) -> impl Iterator<Item = (usize, f32)> {
        let RouteBwdDims { experts, top_k, .. } = *self.dims;
        let (ids, dweights, rows) = (self.ids, self.dweights, self.rows);
        (token * top_k..(token + 1) * top_k)
            .map(move |slot| {
                let dropped = rows.is_some_and(|rows| rows[slot] == NO_ROW);
                (ids[slot] as usize, if dropped { 0.0 } else { dweights[slot] })
            })
            .filter(move |(id, _)| *id < experts)
    }

    /// Softmax over the chosen logits.
    #[inline(always)]
    fn through_chosen(&self, token: usize, logits: &[f32], picked: &mut [f32], out: &mut [f32]) {
        let scale = self.dims.rule.scale;
        out.fill(0.0);
        let mut len = 0;
        for (place, (id, _)) in picked.iter_mut().zip(self.chosen(token)) {
            *place = logits[id];
            len += 1;
        }
        let picked = &mut picked[..padded(len)];
        score(ScoreFunction::Softmax, picked, len);
        let mut dot = 0.0;
        for ((_, dw), weight) in self.chosen(token).zip(&*picked) {
            dot += scale * dw * *weight;
        }
        for ((id, dw), weight) in self.chosen(token).zip(&*picked) {
            out[id] += *weight * (scale * dw - dot);
        }
    }

    /// Scores of all experts, of which the chosen ones are weights.
    #[inline(always)]
    fn through_weights(&self, token: usize, logits: &[f32], space: &mut Space<'_>, out: &mut [f32]) {
        let (rule, experts) = (&self.dims.rule, self.dims.experts);
        let Space { scores, grad, .. } = space;
        let scores = scores.of(rule.score, logits);
        let (mut sum, mut dot) = (0.0, 0.0);
        for (id, dw) in self.chosen(token) {
            sum += scores[id];
            dot += dw * scores[id];
        }
        let sum = sum + 1e-20;
        grad.fill(0.0);
        for (id, dw) in self.chosen(token) {
            grad[id] += rule.scale * if rule.normalize { (dw - dot / sum) / sum } else { dw };
        }
        through_scores(rule.score, logits, scores, grad);
        out.copy_from_slice(&grad[..experts]);
    }

    /// Probabilities p = score / (sum + 1e-20), in the loss of the token's sequence.
    #[inline(always)]
    fn through_probabilities(
        &self,
        balance: Balance<'_>,
        token: usize,
        logits: &[f32],
        space: &mut Space<'_>,
        out: &mut [f32],
    ) {
        let experts = self.dims.experts;
        // The sequence is the last one that begins at or before the token, if it has not ended there.
        let sequence = balance.bounds.partition_point(|first| *first as usize <= token).wrapping_sub(1);
        let Some(factor) = balance.factors.get(sequence) else { return };
        let Space { scores, grad, .. } = space;
        let function = of_losses(self.dims.rule.score);
        let scores = scores.of(function, logits);
        let whole = sum(scores) + 1e-20;
        grad.fill(0.0);
        let counts = &balance.counts[sequence * experts..][..experts];
        grad.iter_mut().zip(counts).for_each(|(dp, count)| *dp = factor * *count as f32);
        let dot = dot(grad, scores) / whole;
        grad[..experts].iter_mut().for_each(|dp| *dp = (*dp - dot) / whole);
        through_scores(function, logits, scores, grad);
        out.iter_mut().zip(grad.iter()).for_each(|(out, grad)| *out += *grad);
    }
}

/// Sum over experts of products, as [`sum`].
#[inline(always)]
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut partial = [0.0; 32];
    for (left, right) in left.as_chunks::<32>().0.iter().zip(right.as_chunks::<32>().0) {
        for lane in 0..32 {
            partial[lane] += left[lane] * right[lane];
        }
    }
    sum(&partial)
}

/// From gradients of the scores to gradients of the logits, in place. The padding of both is zero. A sigmoid that has
/// rounded to 1 still has a slope, so `1 - score` is taken as the sigmoid of the negative logit.
#[inline(always)]
fn through_scores(function: ScoreFunction, logits: &[f32], scores: &[f32], grad: &mut [f32]) {
    if function == ScoreFunction::Sigmoid {
        for ((grad, score), logit) in grad.iter_mut().zip(scores).zip(logits) {
            *grad *= score * sigmoid(-logit);
        }
    } else {
        let dot = dot(grad, scores);
        for (grad, score) in grad.iter_mut().zip(scores) {
            *grad = score * (*grad - dot);
        }
    }
}
