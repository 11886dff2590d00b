//! From a token's logits to its experts: scores, groups, the K best, and their weights.

use super::{RouteRule, ScoreFunction};
use crate::scalar::Accum;
use alloc::vec;
use alloc::vec::Vec;

/// NaN, in a type without `is_nan`.
#[allow(clippy::eq_op)]
pub(super) fn is_nan<A: Accum>(value: A) -> bool {
    value != value
}

/// Whether `a` comes before `b` in descending order. NaN comes last.
fn before<A: Accum>(a: A, b: A) -> bool {
    a > b || (is_nan(b) && !is_nan(a))
}

/// Sum over experts: partial sum i takes i, i+32, ... in order; then halves are added, 16 down to 1.
pub(crate) fn sum_over_experts<A: Accum>(values: impl Iterator<Item = A>) -> A {
    let mut partial = [A::ZERO; 32];
    for (expert, value) in values.enumerate() {
        partial[expert % 32] += value;
    }
    for half in [16, 8, 4, 2, 1] {
        for lane in 0..half {
            let other = partial[lane + half];
            partial[lane] += other;
        }
    }
    partial[0]
}

/// The scores of one token's logits. For [`ScoreFunction::SoftmaxTopK`] they are the logits.
pub(crate) fn scores<A: Accum>(function: ScoreFunction, logits: &[A]) -> Vec<A> {
    match function {
        ScoreFunction::SoftmaxTopK => logits.to_vec(),
        ScoreFunction::Sigmoid => logits.iter().map(|logit| logit.fixed_sigmoid()).collect(),
        ScoreFunction::Softmax => {
            let mut max = A::NEG_INFINITY;
            for logit in logits {
                max = if before(*logit, max) { *logit } else { max };
            }
            let powers: Vec<A> = logits.iter().map(|logit| (*logit - max).fixed_exp()).collect();
            let sum = sum_over_experts(powers.iter().copied());
            powers.into_iter().map(|power| power / sum).collect()
        }
    }
}

/// Masks the experts of all but the best groups with NaN, which is never chosen.
pub(super) fn limit_groups<A: Accum>(rule: &RouteRule, choice: &mut [A]) {
    if rule.groups_kept == rule.groups {
        return;
    }
    let size = choice.len() / rule.groups;
    let mut strength: Vec<A> = choice
        .chunks(size)
        .map(|group| {
            let mut best = [A::NEG_INFINITY; 2];
            for &score in group {
                if before(score, best[0]) {
                    best = [score, best[0]];
                } else if before(score, best[1]) {
                    best[1] = score;
                }
            }
            if size == 1 { best[0] } else { best[0] + best[1] }
        })
        .collect();
    let mut kept = vec![0; rule.groups_kept];
    choose(&mut strength, &mut kept);
    for (group, members) in choice.chunks_mut(size).enumerate() {
        if !kept.contains(&(group as u32)) {
            members.fill(A::of(f64::NAN));
        }
    }
}

/// The indices of the largest values in descending order; ties: lower index; NaN last. A chosen value is overwritten
/// with NaN, and the number of values stands for "no value left that is not NaN".
pub(super) fn choose<A: Accum>(values: &mut [A], chosen: &mut [u32]) {
    let nan = A::of(f64::NAN);
    for slot in chosen {
        let mut best = values.len();
        for (at, value) in values.iter().enumerate() {
            if !is_nan(*value) && (best == values.len() || *value > values[best]) {
                best = at;
            }
        }
        if let Some(value) = values.get_mut(best) {
            *value = nan;
        }
        *slot = best as u32;
    }
}

/// The weights of the chosen experts; sums over K in slot order.
pub(super) fn weigh<A: Accum>(rule: &RouteRule, scores: &[A], ids: &[u32], weights: &mut [A]) {
    for (weight, id) in weights.iter_mut().zip(ids) {
        *weight = scores.get(*id as usize).copied().unwrap_or(A::ZERO);
    }
    let known = |id: &u32| (*id as usize) < scores.len();
    if rule.score == ScoreFunction::SoftmaxTopK {
        let mut max = A::NEG_INFINITY;
        for (weight, _) in weights.iter().zip(ids).filter(|(_, id)| known(id)) {
            max = if before(*weight, max) { *weight } else { max };
        }
        let mut sum = A::ZERO;
        for (weight, _) in weights.iter_mut().zip(ids).filter(|(_, id)| known(id)) {
            *weight = (*weight - max).fixed_exp();
            sum += *weight;
        }
        for (weight, _) in weights.iter_mut().zip(ids).filter(|(_, id)| known(id)) {
            *weight /= sum;
        }
    } else if rule.normalize {
        let mut sum = A::ZERO;
        for weight in weights.iter() {
            sum += *weight;
        }
        for weight in weights.iter_mut() {
            *weight /= sum + A::of(1e-20);
        }
    }
    for weight in weights.iter_mut() {
        *weight *= A::of(rule.scale.into());
    }
}
