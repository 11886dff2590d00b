//! RouteStats: what load-balancing losses and figures are made of, per sequence.
//!
//! `counts[s, e]` slots of sequence s that chose e (before any drop), `prob_sums[s, e]` sum over the tokens of s of
//! `score / (sum of the token's scores + 1e-20)`, and the sum over all tokens of `logsumexp(logits)^2`
//! (z-loss: Zoph et al., "ST-MoE", 2022). Terms are added in chunks of 1024 tokens from the sequence's start (z: from the
//! call's start), each chunk in order from +0, then chunk to chunk. Softmax over the chosen logits counts the softmax over
//! all logits as its scores here.

use super::{CHUNK, ScoreFunction, scores, sum_over_experts};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, check_offsets, expect, within};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out};
use alloc::vec;
use alloc::vec::Vec;
use core::marker::PhantomData;

/// Counts and probability sums per sequence, for storage type `T`.
pub struct RouteStats<T>(PhantomData<T>);

/// Sizes of [`RouteStats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteStatsDims {
    /// T
    pub tokens: usize,
    /// E
    pub experts: usize,
    /// K
    pub top_k: usize,
    /// S
    pub sequences: usize,
    /// logit to score
    pub score: ScoreFunction,
}

/// Views of [`RouteStats`].
pub struct RouteStatsArgs<'a, D: Device, T: Scalar> {
    /// (tokens, experts)
    pub logits: In<'a, D, T::Acc>,
    /// (tokens, top_k); ids of `experts` or more are not counted
    pub ids: In<'a, D, u32>,
    /// (sequences + 1): first token of each sequence, ascending from 0; the last is at most `tokens`
    pub sequences: In<'a, D, u32>,
    /// (sequences, experts), overwritten
    pub counts: Out<'a, D, u32>,
    /// (sequences, experts), overwritten
    pub prob_sums: Out<'a, D, T::Acc>,
    /// (1), overwritten
    pub z_sum: Out<'a, D, T::Acc>,
}

impl<T: Scalar> Op for RouteStats<T> {
    const ID: OpId = OpId("route_stats");
    type Dims = RouteStatsDims;
    type Args<'a, D: Device> = RouteStatsArgs<'a, D, T>;

    fn check<D: Device>(dims: &RouteStatsDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        let RouteStatsDims { tokens, experts, top_k, sequences, .. } = *dims;
        within(Self::ID, "experts", 1, i32::MAX as usize, experts)?;
        within(Self::ID, "sequences", 0, i32::MAX as usize, sequences)?;
        expect(Self::ID, "logits", &[tokens, experts], args.logits.len())?;
        expect(Self::ID, "ids", &[tokens, top_k], args.ids.len())?;
        expect(Self::ID, "sequences", &[sequences + 1], args.sequences.len())?;
        expect(Self::ID, "counts", &[sequences, experts], args.counts.len())?;
        expect(Self::ID, "prob_sums", &[sequences, experts], args.prob_sums.len())?;
        expect(Self::ID, "z_sum", &[1], args.z_sum.len())
    }

    fn reference(dims: &RouteStatsDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let RouteStatsDims { tokens, experts, top_k, score, .. } = *dims;
        let (logits, ids, bounds) = (args.logits.host(), args.ids.host(), args.sequences.host());
        let (counts, sums) = (args.counts.host(), args.prob_sums.host());
        check_offsets(Self::ID, bounds, tokens)?;
        counts.fill(0);
        sums.fill(T::Acc::ZERO);
        for (s, bounds) in bounds.windows(2).enumerate() {
            let (counts, sums) = (&mut counts[s * experts..][..experts], &mut sums[s * experts..][..experts]);
            let sequence: Vec<usize> = (bounds[0] as usize..bounds[1] as usize).collect();
            for chunk in sequence.chunks(CHUNK) {
                let mut part = vec![T::Acc::ZERO; experts];
                for &token in chunk {
                    for &id in &ids[token * top_k..(token + 1) * top_k] {
                        if (id as usize) < experts {
                            counts[id as usize] += 1;
                        }
                    }
                    let probabilities = probabilities(score, &logits[token * experts..][..experts]);
                    part.iter_mut().zip(probabilities).for_each(|(part, p)| *part += p);
                }
                sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
        }
        let mut z_sum = T::Acc::ZERO;
        for chunk in logits.chunks(CHUNK * experts) {
            let mut part = T::Acc::ZERO;
            for logits in chunk.chunks(experts) {
                let z = log_sum_exp(logits);
                part += z * z;
            }
            z_sum += part;
        }
        args.z_sum.host()[0] = z_sum;
        Ok(())
    }
}

/// The score function that the losses see.
pub(super) fn loss_score(score: ScoreFunction) -> ScoreFunction {
    if score == ScoreFunction::SoftmaxTopK { ScoreFunction::Softmax } else { score }
}

fn probabilities<A: Accum>(score: ScoreFunction, logits: &[A]) -> Vec<A> {
    let scores = scores(loss_score(score), logits);
    let sum = sum_over_experts(scores.iter().copied()) + A::of(1e-20);
    scores.into_iter().map(|score| score / sum).collect()
}

/// ln of the sum of e^logit, shifted by the largest.
pub(super) fn log_sum_exp<A: Accum>(logits: &[A]) -> A {
    let max = logits.iter().fold(A::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max });
    max + sum_over_experts(logits.iter().map(|logit| (*logit - max).fixed_exp())).fixed_ln()
}
