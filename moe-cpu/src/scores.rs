//! A token's scores, in rows padded for the 32 partial sums of the contract.

use crate::exact::{exp, sigmoid};
use moe_core::ops::ScoreFunction;

/// Partial sums over experts.
const PARTIAL: usize = 32;

/// Length of a row of `experts` values.
pub(crate) const fn padded(experts: usize) -> usize {
    experts.next_multiple_of(PARTIAL)
}

/// Sum of a padded row whose padding holds zeros. They change no bit: a partial sum starts at +0 and is never -0.
#[inline(always)]
pub(crate) fn sum(row: &[f32]) -> f32 {
    let mut partial = [0.0; PARTIAL];
    for values in row.chunks_exact(PARTIAL) {
        for lane in 0..PARTIAL {
            partial[lane] += values[lane];
        }
    }
    for half in [16, 8, 4, 2, 1] {
        for lane in 0..half {
            partial[lane] += partial[lane + half];
        }
    }
    partial[0]
}

/// The largest value that is not NaN, or -infinity.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let larger = |max: f32, value: f32| if value > max { value } else { max };
    let mut lanes = [f32::NEG_INFINITY; PARTIAL];
    let (whole, rest) = row.as_chunks::<PARTIAL>();
    for values in whole {
        for lane in 0..PARTIAL {
            lanes[lane] = larger(lanes[lane], values[lane]);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, value| larger(max, *value))
}

/// Largest logit, and the sum of the powers of the others' distance to it.
pub(crate) struct Powers {
    pub(crate) max: f32,
    pub(crate) sum: f32,
}

/// Overwrites the first `experts` logits of a padded row with `e^(logit - max)`, the padding with zeros.
#[inline(always)]
pub(crate) fn powers(row: &mut [f32], experts: usize) -> Powers {
    let max = largest(&row[..experts]);
    for value in row.iter_mut() {
        *value = exp(*value - max);
    }
    row[experts..].fill(0.0);
    Powers { max, sum: sum(row) }
}

/// Overwrites the first `experts` logits of a padded row with their softmax, the padding with zeros.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32], experts: usize) -> Powers {
    let powers = powers(row, experts);
    for value in row.iter_mut() {
        *value /= powers.sum;
    }
    row[experts..].fill(0.0);
    powers
}

/// Overwrites the first `experts` logits of a padded row with their scores, the padding with zeros.
#[inline(always)]
pub(crate) fn score(function: ScoreFunction, row: &mut [f32], experts: usize) {
    match function {
        ScoreFunction::Softmax => {
            softmax(row, experts);
        }
        ScoreFunction::Sigmoid => {
            for value in row.iter_mut() {
                *value = sigmoid(*value);
            }
            row[experts..].fill(0.0);
        }
        // Softmax over the chosen: the scores are the logits.
        _ => row[experts..].fill(0.0),
    }
}

/// The score function that losses see: they need one over all experts.
pub(crate) fn of_losses(function: ScoreFunction) -> ScoreFunction {
    match function {
        ScoreFunction::SoftmaxTopK => ScoreFunction::Softmax,
        other => other,
    }
}
