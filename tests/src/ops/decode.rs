//! Samples of Decode.

use super::combine::BASES;
use super::experts::ACTIVATIONS;
use super::route::{SCORES, stamp};
use super::rows::{Rows, Spread};
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{
    Activation, Base, Decode, DecodeArgs, DecodeDims, DecodeRoom, ExpertDims, GateMath, PackUse, Route,
    RouteRule, Selection,
};
use moe_core::{Accum, Device, Scalar};

/// label, (tokens, top_k, experts), (width, hidden), spread
type Shape = (&'static str, (usize, usize, usize), (usize, usize), Spread);

/// Lines in pieces of 1024 bytes, of which the last is a part; more rows than are multiplied together; columns that are not
/// a multiple of anything.
const SHAPES: [Shape; 17] = [
    ("odd sizes", (13, 2, 5), (17, 11), Spread::Random),
    ("one token", (1, 8, 16), (64, 48), Spread::Random),
    ("one token, long lines", (1, 2, 4), (1096, 520), Spread::Random),
    ("no tokens", (0, 2, 3), (8, 8), Spread::Random),
    ("multiples of eight", (6, 3, 8), (40, 24), Spread::Random),
    ("every slot dropped", (4, 2, 3), (16, 8), Spread::Nowhere),
    ("some slots dropped", (15, 3, 8), (24, 56), Spread::Dropping),
    ("one expert has all rows", (21, 1, 4), (48, 16), Spread::Only(&[2])),
    ("one expert has most rows", (37, 1, 9), (16, 32), Spread::Only(&[3, 8])),
    ("every expert for every token", (5, 3, 3), (8, 8), Spread::Random),
    ("many experts", (20, 2, 300), (16, 8), Spread::Random),
    ("many rows", (64, 8, 128), (32, 16), Spread::Random),
    ("more rows", (65, 8, 128), (32, 16), Spread::Random),
    ("eight tokens", (8, 8, 128), (64, 32), Spread::Random),
    ("more experts than blocks", (2, 5, 300), (72, 16), Spread::Random),
    ("nine tokens", (9, 4, 64), (32, 16), Spread::Random),
    ("wide", (3, 2, 4), (2200, 72), Spread::Random),
];

impl<T: Scalar> Case for Decode<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut all = Vec::new();
        for activation in ACTIVATIONS {
            let shape = (9, 2, 5);
            all.push(sample(
                random,
                &format!("{activation:?}"),
                shape,
                (32, 24),
                Spread::Random,
                activation,
                all.len(),
            ));
        }
        for (label, counts, sizes, spread) in SHAPES {
            all.push(sample(random, label, counts, sizes, spread, Activation::SwiGlu, all.len()));
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> DecodeArgs<'a, D, T> {
        DecodeArgs {
            route: Route::<T>::args(views),
            w13: views.weight("w13"),
            b13: views.read_if("b13"),
            w2: views.weight("w2"),
            b2: views.read_if("b2"),
            base: BASES.map(|(base, scale)| {
                views.read_if(base).map(|rows| Base { rows, scale: views.read_if(scale) })
            }),
            counts: views.write("counts"),
            dropped: views.write("dropped"),
            out: views.write("out"),
            room: DecodeRoom {
                offsets: views.write("offsets"),
                row_of_slot: views.write("row_of_slot"),
                slot_of_row: views.write("slot_of_row"),
                a: views.write("a"),
                y: views.write("y"),
            },
        }
    }
}

/// Who says which experts a token visits.
enum Chooser {
    Given,
    Exact,
    /// the native gate, with numbers whose sums are exact in any order
    Native,
    RoundRobin,
}

/// The `nth` sample: with and without biases, base terms, and the scores first.
fn sample<T: Scalar>(
    random: &mut Random,
    label: &str,
    (tokens, top_k, experts): (usize, usize, usize),
    (width, hidden): (usize, usize),
    spread: Spread,
    activation: Activation,
    nth: usize,
) -> Sample<Decode<T>> {
    let rows = tokens * top_k;
    let chooser = match nth % 5 {
        _ if spread != Spread::Random => Chooser::Given,
        0 | 3 => Chooser::Exact,
        1 | 4 => Chooser::Native,
        _ => Chooser::RoundRobin,
    };
    let mut rule =
        RouteRule { score: SCORES[nth % 3], normalize: nth.is_multiple_of(2), ..RouteRule::default() };
    let (mut forced, mut stamped) = (None, None);
    match chooser {
        Chooser::Given => forced = Some(Rows::new(random, tokens, top_k, experts, spread).ids),
        Chooser::Exact => {}
        Chooser::Native => rule.gate = GateMath::Native,
        Chooser::RoundRobin => {
            rule.selection = Selection::RoundRobin;
            stamped = Some(stamp().to_vec());
        }
    }
    let mut routed = |len| match chooser {
        Chooser::Native => (0..len).map(|_| T::narrow(T::Acc::of(random.below(7) as f64 - 3.0))).collect(),
        _ => random.values::<T>(len),
    };
    let (x, gate, gate_bias) = (routed(tokens * width), routed(experts * width), routed(experts));
    let dims = DecodeDims {
        experts: ExpertDims {
            tokens,
            fan: top_k,
            rows,
            experts,
            width,
            hidden,
            activation,
            bias_shares: 1 + nth % 2,
        },
        rule,
        scores_first: nth % 3 == 1,
    };
    let (of, biased, exact) = (&dims.experts, nth % 4 < 2, Tolerance::EXACT);
    let mut sample = Sample::new(label, dims)
        .input("x", x)
        .weight("gate", gate, dims.route().pack())
        .maybe("gate_bias", biased.then_some(gate_bias))
        .maybe("selection_bias", (nth % 4 == 2).then(|| random.values::<T::Acc>(experts)))
        .maybe("forced_ids", forced)
        .maybe("stamp", stamped)
        .output::<T::Acc>("logits", tokens * experts, exact)
        .output::<u32>("ids", rows, exact)
        .output::<T::Acc>("weights", rows, exact)
        .output::<u32>("non_finite", 1, exact)
        .weight("w13", random.values::<T>(experts * of.up_width() * width), of.pack(PackUse::Up))
        .maybe("b13", biased.then(|| random.values::<T>(experts * of.up_width())))
        .weight("w2", random.values::<T>(experts * width * hidden), of.pack(PackUse::Down))
        .maybe("b2", biased.then(|| random.values::<T>(experts * width)))
        .output::<u32>("counts", experts, exact)
        .output::<u32>("dropped", 1, exact)
        .output::<T>("out", tokens * width, Tolerance::stored::<T>())
        .room::<u32>("offsets", experts + 1)
        .room::<u32>("row_of_slot", rows)
        .room::<u32>("slot_of_row", rows)
        .room::<T>("a", rows * hidden)
        .room::<T>("y", rows * width);
    for (base, scale) in BASES.into_iter().take(nth % 4) {
        sample = sample
            .input(base, random.values::<T>(tokens * width))
            .maybe(scale, nth.is_multiple_of(2).then(|| random.scores::<T::Acc>(tokens)));
    }
    sample
}
