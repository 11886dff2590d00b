//! What the samples of the four expert products have in common.

use super::rows::{Rows, Spread};
use crate::random::Random;
use moe_core::ops::{Activation, ExpertDims};

/// When the scores are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scores {
    Absent,
    Before,
    After,
}

/// Sizes and options of one sample.
pub(super) struct Pattern {
    pub(super) label: String,
    pub(super) dims: ExpertDims,
    pub(super) rows: Rows,
    pub(super) indexed: bool,
    pub(super) biased: bool,
    pub(super) scores: Scores,
    /// rows go to places of their own
    pub(super) scattered: bool,
}

pub(super) const ACTIVATIONS: [Activation; 8] = [
    Activation::SwiGlu,
    Activation::GeGlu,
    Activation::GeGluTanh,
    Activation::ClampedSwiGlu { alpha: 1.702, limit: 0.6 },
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::SquaredRelu,
    Activation::Linear,
];

/// label, (tokens, fan, experts), (width, hidden), spread
type Shape = (&'static str, (usize, usize, usize), (usize, usize), Spread);

const SHAPES: [Shape; 15] = [
    ("odd sizes", (13, 2, 5), (17, 11), Spread::Random),
    ("one expert per token", (9, 1, 3), (8, 16), Spread::Random),
    ("first and last expert empty", (10, 2, 6), (16, 8), Spread::Only(&[1, 3])),
    ("one expert has all rows", (21, 1, 4), (33, 7), Spread::Only(&[2])),
    ("no tokens", (0, 2, 3), (8, 4), Spread::Random),
    ("one token", (1, 2, 2), (5, 3), Spread::Random),
    ("every expert for every token", (5, 3, 3), (1, 1), Spread::Random),
    ("every slot dropped", (4, 1, 3), (6, 5), Spread::Nowhere),
    ("some slots dropped", (15, 3, 4), (12, 10), Spread::Dropping),
    ("no experts", (3, 1, 0), (4, 4), Spread::Nowhere),
    ("many small experts", (20, 2, 40), (9, 4), Spread::Random),
    ("no hidden width", (5, 1, 2), (4, 0), Spread::Random),
    ("no width", (5, 1, 2), (0, 3), Spread::Random),
    ("across tiles", (140, 1, 2), (130, 70), Spread::Only(&[1, 0])),
    ("multiples of tiles", (64, 2, 2), (64, 32), Spread::Random),
];

/// Every activation under every order of scores, with and without biases; then every shape.
pub(super) fn patterns(random: &mut Random) -> Vec<Pattern> {
    let mut all = Vec::new();
    let orders = [Scores::Absent, Scores::Before, Scores::After];
    for activation in ACTIVATIONS {
        for scores in orders {
            for biased in [false, true] {
                let label = format!("scores {scores:?}, {}", if biased { "biases" } else { "no biases" });
                let mut pattern = indexed(random, &label, (7, 2, 3), (9, 5), Spread::Random);
                (pattern.dims.activation, pattern.scores, pattern.biased) = (activation, scores, biased);
                pattern.scattered = biased;
                pattern.dims.bias_shares = if activation.gated() { 3 } else { 1 };
                all.push(pattern);
            }
        }
    }
    for (nth, (label, counts, sizes, spread)) in SHAPES.into_iter().enumerate() {
        let mut pattern = indexed(random, label, counts, sizes, spread);
        (pattern.scores, pattern.biased) = (orders[nth % 3], nth % 2 == 0);
        pattern.scattered = nth % 4 == 1;
        pattern.dims.bias_shares = 1 + nth / 2 % 2;
        all.push(pattern);
    }
    for (nth, scores) in orders.into_iter().enumerate() {
        all.push(identity(random, scores, nth));
    }
    all
}

fn indexed(
    random: &mut Random,
    label: &str,
    (tokens, fan, experts): (usize, usize, usize),
    (width, hidden): (usize, usize),
    spread: Spread,
) -> Pattern {
    let rows = Rows::new(random, tokens, fan, experts, spread);
    Pattern {
        label: label.into(),
        dims: ExpertDims {
            tokens,
            fan,
            rows: rows.bound,
            experts,
            width,
            hidden,
            activation: Activation::SwiGlu,
            bias_shares: 1,
        },
        rows,
        indexed: true,
        biased: false,
        scores: Scores::Absent,
        scattered: false,
    }
}

/// Rows that are the tokens themselves, as shared experts have them; the last tokens have no row.
fn identity(random: &mut Random, scores: Scores, nth: usize) -> Pattern {
    let (tokens, experts) = (19, 1 + nth);
    let mut ids: Vec<u32> = (0..tokens).map(|t| (t * experts / tokens) as u32).collect();
    ids[tokens - nth..].fill(experts as u32);
    let label = format!("no index, scores {scores:?}");
    let pattern = indexed(random, &label, (tokens, 1, experts), (10, 12), Spread::Nowhere);
    Pattern {
        dims: ExpertDims { rows: tokens, ..pattern.dims },
        rows: Rows::of(ids, experts, tokens),
        indexed: false,
        biased: true,
        scores,
        ..pattern
    }
}

impl Pattern {
    /// The label with the activation.
    pub(super) fn label(&self) -> String {
        format!("{}, {:?}", self.label, self.dims.activation)
    }

    /// Each row's slot, if rows are not the tokens themselves.
    pub(super) fn index(&self) -> Option<Vec<u32>> {
        self.indexed.then(|| self.rows.index.clone())
    }

    /// Each row's place in the output, if it is not its own.
    pub(super) fn out_index(&self, random: &mut Random) -> Option<Vec<u32>> {
        self.scattered.then(|| random.permutation(self.rows.bound))
    }

    /// Elements of the up-projection, and of the down-projection.
    pub(super) fn weights(&self) -> (usize, usize) {
        let dims = &self.dims;
        let down = dims.experts * dims.width * dims.hidden;
        (dims.experts * dims.up_width() * dims.width, down)
    }
}
