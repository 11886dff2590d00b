//! Combine: the transpose of the dispatch, and indifferent to dropped slots and other tokens.

use crate::run::{read, run, write};
use approx::assert_relative_eq;
use moe_core::ops::{Base, Combine, CombineArgs, CombineDims, Gather, GatherArgs, GatherDims, NO_ROW};
use moe_tests::{Random, Rows, Spread};
use proptest::prelude::*;

fn combine(dims: CombineDims, y: &[f64], rows: &[u32], weights: Option<&[f64]>) -> Vec<f64> {
    let mut out = vec![f64::NAN; dims.tokens * dims.width];
    let args = CombineArgs {
        y: read(y),
        row_of_slot: read(rows),
        weights: weights.map(read),
        base: [None, None, None],
        out: write(&mut out),
    };
    run::<Combine<f64>>(dims, args);
    out
}

fn gather(dims: GatherDims, source: &[f64], index: &[u32], offsets: &[u32]) -> Vec<f64> {
    let mut out = vec![0.0; dims.out_rows() * dims.width];
    let (source, index, offsets) = (read(source), read(index), read(offsets));
    run::<Gather<f64>>(dims, GatherArgs { source, index, offsets, out: write(&mut out) });
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn combine_is_the_transpose_of_dispatch(seed: u64, tokens in 0_usize..12, top_k in 1_usize..4, drops: bool) {
        let (mut random, experts, width) = (Random::new(seed), 5, 3);
        let spread = if drops { Spread::Dropping } else { Spread::Random };
        let rows = Rows::new(&mut random, tokens, top_k, experts, spread);
        let used = rows.used();
        let y: Vec<f64> = random.values(rows.bound * width);
        let z: Vec<f64> = random.values(tokens * width);
        let dims = CombineDims { tokens, top_k, width, rows: rows.bound };
        let combined = combine(dims, &y, &rows.row_of_slot, None);
        let dims = GatherDims { sources: tokens, fan: top_k, rows: rows.bound, width, groups: experts, pitch: 0 };
        let gathered = gather(dims, &z, &rows.index, &rows.offsets);
        let (left, right) = (dot(&combined, &z), dot(&y[..used * width], &gathered[..used * width]));
        assert_relative_eq!(left, right, epsilon = 1e-12, max_relative = 1e-12);
    }

    #[test]
    fn the_bits_of_a_token_do_not_depend_on_the_other_tokens(seed: u64, tokens in 1_usize..9) {
        let (mut random, top_k, width) = (Random::new(seed), 2, 4);
        let rows = Rows::new(&mut random, tokens, top_k, 3, Spread::Random);
        let y: Vec<f64> = random.values(rows.bound * width);
        let weights: Vec<f64> = random.scores(tokens * top_k);
        let dims = CombineDims { tokens, top_k, width, rows: rows.bound };
        let all = combine(dims, &y, &rows.row_of_slot, Some(&weights));
        for token in 0..tokens {
            let slots = token * top_k..(token + 1) * top_k;
            let alone = combine(
                CombineDims { tokens: 1, ..dims },
                &y,
                &rows.row_of_slot[slots.clone()],
                Some(&weights[slots]),
            );
            prop_assert_eq!(&all[token * width..(token + 1) * width], &alone[..]);
        }
    }
}

#[test]
fn a_dropped_slot_adds_nothing() {
    let dims = CombineDims { tokens: 1, top_k: 2, width: 1, rows: 1 };
    let weights = [0.5, f64::NAN];
    assert_eq!(combine(dims, &[3.0], &[0, NO_ROW], Some(&weights)), [1.5]);
}

#[test]
fn base_terms_come_last_and_in_order() {
    // In f32 2^25 swallows a 1; in any other order some of them would be left.
    let dims = CombineDims { tokens: 1, top_k: 1, width: 1, rows: 1 };
    let base = |rows: &'static [f32]| Some(Base { rows: read(rows), scale: None });
    let mut out = [0.0_f32];
    let args = CombineArgs {
        y: read(&[33_554_432.0]),
        row_of_slot: read(&[0]),
        weights: None,
        base: [base(&[1.0]), base(&[1.0]), base(&[-33_554_432.0])],
        out: write(&mut out),
    };
    run::<Combine<f32>>(dims, args);
    assert_eq!(out, [0.0]);
}
