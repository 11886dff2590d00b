//! Samples of RouteBwd.

use super::route::SCORES;
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{Aux, NO_ROW, RouteBwd, RouteBwdArgs, RouteBwdDims, RouteRule};
use moe_core::{Accum, Device, Scalar};

impl<T: Scalar> Case for RouteBwd<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        let mut all = Vec::new();
        for score in SCORES {
            let rule = |normalize: bool| RouteRule {
                score,
                normalize,
                scale: if normalize { 1.0 } else { 2.5 },
                ..RouteRule::default()
            };
            let dims = |tokens, experts, top_k, normalize| RouteBwdDims {
                tokens,
                experts,
                top_k,
                sequences: 0,
                rule: rule(normalize),
                accumulate: false,
            };
            for bits in 0..32 {
                let on = |bit: usize| bits >> bit & 1 == 1;
                let mut dims = dims(13, 9, 3, on(0));
                dims.sequences = if on(1) { 3 } else { 0 };
                dims.accumulate = on(4);
                let extras = Extras {
                    bounds: on(1).then_some(&[0, 4, 4, 11]),
                    z: on(2),
                    rows: on(3),
                    load: on(3) || on(4),
                };
                all.push(sample(random, "settings", dims, extras));
            }
            for (label, tokens, experts, top_k, bounds) in [
                ("no tokens", 0, 4, 2, &[0, 0]),
                ("one token", 1, 8, 8, &[0, 1]),
                ("one expert", 5, 1, 1, &[0, 5]),
                ("one expert per token", 8, 16, 1, &[0, 8]),
                ("experts beyond the 32 partial sums", 6, 70, 6, &[0, 6]),
                ("many tokens", 1100, 4, 2, &[0, 1100]),
            ] {
                let mut dims = dims(tokens, experts, top_k, true);
                dims.sequences = 1;
                let extras = Extras { bounds: Some(bounds), z: true, rows: false, load: true };
                all.push(sample(random, label, dims, extras));
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> RouteBwdArgs<'a, D, T> {
        let aux = views.read_if("sequences").map(|sequences| Aux {
            sequences,
            counts: views.read("counts"),
            factors: views.read("factors"),
        });
        RouteBwdArgs {
            logits: views.read("logits"),
            ids: views.read("ids"),
            dweights: views.read("dweights"),
            row_of_slot: views.read_if("row_of_slot"),
            aux,
            z_factor: views.read_if("z_factor"),
            load: views.write_if("load"),
            dlogits: views.write("dlogits"),
        }
    }
}

/// Optional arguments.
struct Extras<'a> {
    bounds: Option<&'a [u32]>,
    z: bool,
    rows: bool,
    load: bool,
}

fn sample<T: Scalar>(
    random: &mut Random,
    label: &str,
    dims: RouteBwdDims,
    extras: Extras<'_>,
) -> Sample<RouteBwd<T>> {
    let RouteBwdDims { tokens, experts, top_k, sequences, .. } = dims;
    let slots = tokens * top_k;
    let mut ids = random.ids(tokens, top_k, experts);
    ids.iter_mut().skip(4).step_by(11).for_each(|id| *id = experts as u32);
    let mut dweights = random.values::<T::Acc>(slots);
    // What stands at a slot without a row is never looked at.
    let rows = extras.rows.then(|| {
        let mut rows: Vec<u32> = (0..slots as u32).collect();
        for slot in (1..slots).step_by(5) {
            (rows[slot], dweights[slot]) = (NO_ROW, T::Acc::of(f64::NAN));
        }
        rows
    });
    let mut sample = Sample::new(format!("{label}, {:?}", dims.rule.score), dims)
        .input("logits", random.scaled::<T::Acc>(tokens * experts, 3.0))
        .input("ids", ids)
        .input("dweights", dweights)
        .maybe("row_of_slot", rows)
        .maybe("z_factor", extras.z.then(|| vec![T::Acc::of(0.01)]))
        // Gradients of weights that sum to 1 cancel.
        .output::<T::Acc>("dlogits", tokens * experts, Tolerance::gradient::<T::Acc>().floor(0.1));
    if let Some(bounds) = extras.bounds {
        let counts = (0..sequences * experts).map(|_| random.below(20) as u32).collect();
        sample = sample
            .input("sequences", bounds.to_vec())
            .input::<u32>("counts", counts)
            .input("factors", random.scores::<T::Acc>(sequences));
    }
    match extras.load {
        true if dims.accumulate => {
            let mut load: Vec<u32> = (0..experts as u32).collect();
            load[experts - 1] = u32::MAX - 1;
            sample.update("load", load, Tolerance::EXACT)
        }
        wanted => sample.output_if::<u32>(wanted, "load", experts, Tolerance::EXACT),
    }
}
