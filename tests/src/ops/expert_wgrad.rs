//! Samples of ExpertWgrad.

use super::rows::{Rows, Spread};
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{ExpertWgrad, ExpertWgradArgs, WgradDims};
use moe_core::{Device, Scalar};

/// Which operand is read through the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gathered {
    Left,
    Right,
    Neither,
}

/// label, (tokens, fan, experts), (left, right), spread
type Shape = (&'static str, (usize, usize, usize), (usize, usize), Spread);

const SHAPES: [Shape; 9] = [
    ("odd sizes", (13, 2, 5), (17, 11), Spread::Random),
    ("first and last expert empty", (10, 2, 6), (8, 16), Spread::Only(&[1, 3])),
    ("one expert has all rows", (21, 1, 4), (33, 7), Spread::Only(&[2])),
    ("no tokens", (0, 2, 3), (8, 4), Spread::Random),
    ("one token", (1, 2, 2), (5, 3), Spread::Random),
    ("every slot dropped", (4, 1, 3), (6, 5), Spread::Nowhere),
    ("some slots dropped", (15, 3, 4), (1, 1), Spread::Dropping),
    ("no experts", (3, 1, 0), (4, 4), Spread::Nowhere),
    ("across tiles", (140, 1, 2), (70, 130), Spread::Only(&[1, 0])),
];

impl<T: Scalar> Case for ExpertWgrad<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut all = Vec::new();
        for (nth, shape) in SHAPES.into_iter().enumerate() {
            for (kind, gathered) in
                [Gathered::Left, Gathered::Right, Gathered::Neither].into_iter().enumerate()
            {
                for weighted in [false, true] {
                    let options = Options {
                        gathered,
                        weighted,
                        biased: (nth + kind) % 3 != 0,
                        accumulate: (nth + kind) % 2 == 0,
                        indexed: true,
                    };
                    all.push(sample(random, shape, options));
                }
            }
        }
        let shape = ("no index", (9, 1, 1), (6, 10), Spread::Random);
        for accumulate in [false, true] {
            let options = Options {
                gathered: Gathered::Left,
                weighted: accumulate,
                biased: true,
                accumulate,
                indexed: false,
            };
            all.push(sample(random, shape, options));
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> ExpertWgradArgs<'a, D, T> {
        ExpertWgradArgs {
            left: views.read("left"),
            right: views.read("right"),
            index: views.read_if("index"),
            offsets: views.read("offsets"),
            right_weights: views.read_if("right_weights"),
            bias_weights: views.read_if("bias_weights"),
            dw: views.write("dw"),
            dbias: views.write_if("dbias"),
        }
    }
}

struct Options {
    gathered: Gathered,
    weighted: bool,
    biased: bool,
    accumulate: bool,
    indexed: bool,
}

fn sample<T: Scalar>(random: &mut Random, shape: Shape, options: Options) -> Sample<ExpertWgrad<T>> {
    let (label, (tokens, fan, experts), (left, right), spread) = shape;
    let mut rows = Rows::new(random, tokens, fan, experts, spread);
    if !options.indexed {
        rows = Rows::of(rows.ids, experts, tokens * fan);
    }
    let dims = WgradDims {
        tokens,
        fan,
        rows: rows.bound,
        experts,
        left,
        right,
        gather_left: options.gathered == Gathered::Left,
        gather_right: options.gathered == Gathered::Right,
        accumulate: options.accumulate,
    };
    let operand = |random: &mut Random, gathered: bool, width: usize| {
        if gathered { random.values::<T>(tokens * width) } else { rows.values::<T>(random, width) }
    };
    let slots = tokens * fan;
    let label = format!("{label}, {:?} gathered, weighted {}", options.gathered, options.weighted);
    let sample = Sample::new(label, dims)
        .input("left", operand(random, dims.gather_left, left))
        .input("right", operand(random, dims.gather_right, right))
        .maybe("index", options.indexed.then(|| rows.index.clone()))
        .input("offsets", rows.offsets.clone())
        .maybe("right_weights", options.weighted.then(|| random.scores::<T::Acc>(slots)))
        .maybe("bias_weights", options.weighted.then(|| random.scores::<T::Acc>(slots)));
    let sample = gradient(random, sample, "dw", true, experts * left * right);
    gradient(random, sample, "dbias", options.biased, experts * left)
}

/// Gradients hold values before they are added to, and poison before they are overwritten.
fn gradient<T: Scalar>(
    random: &mut Random,
    sample: Sample<ExpertWgrad<T>>,
    name: &'static str,
    wanted: bool,
    len: usize,
) -> Sample<ExpertWgrad<T>> {
    let close = Tolerance::gradient::<T>();
    if !wanted {
        sample
    } else if sample.dims.accumulate {
        sample.update(name, random.values::<T::Acc>(len), close)
    } else {
        sample.output::<T::Acc>(name, len, close)
    }
}
