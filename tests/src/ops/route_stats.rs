//! Samples of RouteStats.

use super::route::SCORES;
use crate::case::Case;
use crate::random::Random;
use crate::sample::Sample;
use crate::tolerance::Tolerance;
use crate::views::Views;
use moe_core::ops::{RouteStats, RouteStatsArgs, RouteStatsDims};
use moe_core::{Device, Scalar};

impl<T: Scalar> Case for RouteStats<T> {
    fn samples(random: &mut Random) -> Vec<Sample<Self>> {
        // label, experts, top_k, factor on logits, first tokens of sequences, tokens
        let shapes: [(_, _, _, _, &[u32], _); 9] = [
            ("odd sizes", 7, 2, 3.0, &[0, 5, 13], 13),
            ("empty sequences", 5, 2, 3.0, &[0, 0, 4, 4, 9, 9], 9),
            ("tokens of no sequence", 5, 1, 3.0, &[0, 4], 9),
            ("no sequences", 5, 2, 3.0, &[0], 6),
            ("no tokens", 4, 2, 1.0, &[0, 0], 0),
            ("one token", 1, 1, 1.0, &[0, 1], 1),
            ("more than a chunk", 3, 1, 3.0, &[0, 1100, 2500], 2500),
            ("experts beyond the 32 partial sums", 70, 6, 3.0, &[0, 10, 20], 20),
            ("large logits", 8, 2, 300.0, &[0, 12], 12),
        ];
        let sum = Tolerance::sum::<T>();
        let mut all = Vec::new();
        for (label, experts, top_k, scale, sequences, tokens) in shapes {
            for score in SCORES {
                let dims = RouteStatsDims { tokens, experts, top_k, sequences: sequences.len() - 1, score };
                let mut ids = random.ids(tokens, top_k, experts);
                ids.iter_mut().skip(1).step_by(9).for_each(|id| *id = experts as u32);
                let sums = dims.sequences * experts;
                let sample = Sample::new(label, dims)
                    .input("logits", random.scaled::<T::Acc>(tokens * experts, scale))
                    .input("ids", ids)
                    .input("sequences", sequences.to_vec())
                    .output::<u32>("counts", sums, Tolerance::EXACT)
                    .output::<T::Acc>("prob_sums", sums, sum)
                    .output::<T::Acc>("z_sum", 1, sum);
                all.push(sample);
            }
        }
        all
    }

    fn args<'a, D: Device>(views: &mut Views<'a, D>) -> RouteStatsArgs<'a, D, T> {
        RouteStatsArgs {
            logits: views.read("logits"),
            ids: views.read("ids"),
            sequences: views.read("sequences"),
            counts: views.write("counts"),
            prob_sums: views.write("prob_sums"),
            z_sum: views.write("z_sum"),
        }
    }
}
