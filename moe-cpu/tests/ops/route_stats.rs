//! RouteStats has the bits of the reference.

use super::{below, bits, cpus, launch, values};
use moe_core::ops::{RouteStats, RouteStatsArgs, RouteStatsDims, ScoreFunction};
use moe_core::{Host, View, ViewMut};

fn agree(dims: RouteStatsDims, bounds: &[u32], logits: &[f32]) {
    let RouteStatsDims { tokens, experts, top_k, sequences, .. } = dims;
    let ids = below(experts + 1, tokens * top_k, 2);
    macro_rules! stats {
        ($device:expr) => {{
            let (mut counts, mut z) = (vec![9; sequences * experts], [9.0]);
            let mut sums = vec![9.0; sequences * experts];
            let args = RouteStatsArgs {
                logits: View::of(logits),
                ids: View::of(&ids),
                sequences: View::of(bounds),
                counts: ViewMut::of(&mut counts),
                prob_sums: ViewMut::of(&mut sums),
                z_sum: ViewMut::of(&mut z),
            };
            launch!($device, RouteStats<f32>, dims, args).unwrap();
            (counts, bits(&sums), bits(&z))
        }};
    }
    let want = stats!(&Host);
    for cpu in cpus() {
        assert_eq!(stats!(&cpu), want, "{cpu:?} {dims:?}");
    }
}

#[test]
fn sequences_of_all_lengths() {
    for score in [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid] {
        for experts in [1, 6, 37, 64] {
            let dims = RouteStatsDims { tokens: 2500, experts, top_k: 2, sequences: 5, score };
            let mut logits = values::<f32>(2500 * experts, 1);
            agree(dims, &[0, 0, 1100, 1101, 2200, 2300], &logits);
            logits[7 * experts] = f32::NAN;
            logits[1200 * experts..1201 * experts].fill(f32::NEG_INFINITY);
            agree(dims, &[0, 2500, 2500, 2500, 2500, 2500], &logits);
        }
        let dims = RouteStatsDims { tokens: 0, experts: 3, top_k: 1, sequences: 0, score };
        agree(dims, &[0], &[]);
    }
}
