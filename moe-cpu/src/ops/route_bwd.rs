//! RouteBwd: blocks of tokens; each token's gradients of scores meet in a row of scratch memory.

use super::{path, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::exact::sigmoid;
use crate::gemm::{Float, Job, SLACK, Scratch, Shared, Simd, bytes, share};
use crate::scores::{Powers, of_losses, padded, powers, score, sum};
use moe_core::ops::{NO_ROW, RouteBwd, RouteBwdArgs, RouteBwdDims, ScoreFunction};
use moe_core::{Accum, Device, Kernel, Op, Out, Path, View, ViewMut, check_offsets};
use std::ops::Range;

/// Tokens of a task.
const TOKENS: usize = 64;

/// The load-balancing loss.
#[derive(Clone, Copy)]
struct Balance<'a> {
    bounds: &'a [u32],
    counts: &'a [u32],
    factors: &'a [f32],
}

/// What all tasks read.
struct Work<'a> {
    dims: &'a RouteBwdDims,
    logits: &'a [f32],
    ids: &'a [u32],
    dweights: &'a [f32],
    rows: Option<&'a [u32]>,
    balance: Option<Balance<'a>>,
    z_factor: Option<f32>,
}

/// A worker's memory for one token.
struct Space<'a> {
    scores: &'a mut [f32],
    grad: &'a mut [f32],
    /// the chosen logits, and then their weights
    picked: &'a mut [f32],
}

impl<'a> Space<'a> {
    fn bytes(dims: &RouteBwdDims) -> usize {
        SLACK + 2 * bytes::<f32>(padded(dims.experts)) + bytes::<f32>(padded(dims.top_k))
    }

    fn new(dims: &RouteBwdDims, memory: &'a mut [u8]) -> Self {
        let mut scratch = Scratch::new(memory);
        let [scores, grad, picked] =
            [dims.experts, dims.experts, dims.top_k].map(|len| scratch.take(padded(len)));
        Self { scores, grad, picked }
    }
}

/// The gradients of a block of tokens.
struct Block<'a, 's> {
    work: &'a Work<'a>,
    tokens: Range<usize>,
    dlogits: &'a mut [f32],
    space: &'a mut Space<'s>,
}

impl Job for Block<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { work, tokens, dlogits, space } = self;
        let experts = work.dims.experts;
        for (token, out) in tokens.zip(dlogits.chunks_exact_mut(experts)) {
            let logits = &work.logits[token * experts..][..experts];
            if work.dims.rule.score == ScoreFunction::SoftmaxTopK {
                work.through_chosen(token, logits, space.picked, out);
            } else {
                work.through_weights(token, logits, space, out);
            }
            if let Some(balance) = work.balance {
                work.through_probabilities(balance, token, logits, space, out);
            }
            if let Some(factor) = work.z_factor {
                space.scores[..experts].copy_from_slice(logits);
                let Powers { max, sum } = powers(space.scores, experts);
                let slope = 2.0 * factor * (max + sum.fixed_ln());
                out.iter_mut().zip(&*space.scores).for_each(|(out, power)| *out += slope * (power / sum));
            }
        }
    }
}

impl Work<'_> {
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
        scores[..experts].copy_from_slice(logits);
        score(rule.score, scores, experts);
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
        scores[..experts].copy_from_slice(logits);
        score(function, scores, experts);
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

impl<T: Float> Kernel<RouteBwd<T>> for Cpu {
    fn scratch(&self, dims: &RouteBwdDims) -> usize {
        self.threads() * Space::bytes(dims)
    }

    fn launch(
        &self,
        (): &(),
        dims: &RouteBwdDims,
        args: RouteBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<RouteBwd<T>>(self, dims, &args, scratch.len())?;
        let RouteBwdDims { tokens, experts, accumulate, .. } = *dims;
        let balance = args.aux.map(|aux| Balance {
            bounds: aux.sequences.host(),
            counts: aux.counts.host(),
            factors: aux.factors.host(),
        });
        if let Some(balance) = balance {
            check_offsets(RouteBwd::<T>::ID, balance.bounds, tokens)?;
        }
        let ids = args.ids.host();
        if let Some(load) = args.load.map(ViewMut::host) {
            if !accumulate {
                load.fill(0);
            }
            for id in ids {
                if let Some(load) = load.get_mut(*id as usize) {
                    *load = load.saturating_add(1);
                }
            }
        }
        let work = Work {
            dims,
            logits: args.logits.host(),
            ids,
            dweights: args.dweights.host(),
            rows: args.row_of_slot.map(View::host),
            balance,
            z_factor: args.z_factor.map(|factor| factor.host()[0]),
        };
        let dlogits = Shared::new(args.dlogits.host());
        let (unit, threads, each) = (self.unit(), self.threads(), Space::bytes(dims));
        self.enter(|| {
            share(threads, tokens.div_ceil(TOKENS), scratch.host(), each, |queue, memory| {
                let mut space = Space::new(dims, memory);
                for task in queue {
                    let tokens = task * TOKENS..tokens.min((task + 1) * TOKENS);
                    // SAFETY: each task has its own tokens.
                    let dlogits = unsafe { dlogits.part(tokens.start * experts..tokens.end * experts) };
                    unit.run(Block { work: &work, tokens, dlogits, space: &mut space });
                }
            });
        });
        Ok(path(self))
    }
}
