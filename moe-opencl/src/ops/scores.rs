//! Scores: what Route, RouteStats and RouteBwd make of every token's logits first.

use crate::call::{Call, Grid, Params, Place};
use crate::error::OpenClError;
use crate::program::{NO_STORAGE, Source, source};
use moe_core::Op;
use moe_core::ops::ScoreFunction;

pub(super) static SOURCE: Source = source!("scores", ["exact", "team"], NO_STORAGE);

/// `ScoreParams` of `kernels/scores.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ScoreParams {
    tokens: u32,
    experts: u32,
    function: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for ScoreParams {}

/// The number of a score function in the kernels.
pub(super) fn score_number(function: ScoreFunction) -> u32 {
    match function {
        ScoreFunction::Softmax => 0,
        ScoreFunction::Sigmoid => 2,
        _ => 1,
    }
}

/// The score function that the losses see.
pub(super) fn loss_score(function: ScoreFunction) -> ScoreFunction {
    if function == ScoreFunction::SoftmaxTopK { ScoreFunction::Softmax } else { function }
}

/// Groups of two teams, which have a token each: `kernels/team.cl`.
pub(super) fn by_team(tokens: usize) -> Grid {
    Grid::new(tokens.div_ceil(2), 64)
}

/// Launches the kernel; `call` has turned to [`SOURCE`]. `places` are logits, scores, sums, non-finite count.
pub(super) fn launch<O: Op>(
    call: &Call<'_, O>,
    (tokens, experts): (usize, usize),
    function: ScoreFunction,
    places: [Place; 4],
) -> Result<(), OpenClError> {
    let params =
        ScoreParams { tokens: tokens as u32, experts: experts as u32, function: score_number(function) };
    call.launch("score_tokens", by_team(tokens), &places, &params)
}
