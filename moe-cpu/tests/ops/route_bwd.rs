//! RouteBwd has the values of the reference.

use super::{assert_close, below, cpus, launch, values};
use moe_core::ops::{Aux, NO_ROW, RouteBwd, RouteBwdArgs, RouteBwdDims, RouteRule, ScoreFunction};
use moe_core::{Host, View, ViewMut};

fn agree(dims: RouteBwdDims, losses: bool) {
    let RouteBwdDims { tokens, experts, top_k, sequences, .. } = dims;
    let (logits, ids) = (values::<f32>(tokens * experts, 1), below(experts + 1, tokens * top_k, 2));
    let dweights = values::<f32>(tokens * top_k, 3);
    let rows: Vec<u32> =
        below(5, tokens * top_k, 4).into_iter().map(|row| if row == 0 { NO_ROW } else { row }).collect();
    let bounds: Vec<u32> = (0..=sequences).map(|s| (tokens * s / (sequences + 1)) as u32).collect();
    let (counts, factors) = (below(9, sequences * experts, 5), values::<f32>(sequences, 6));
    macro_rules! backward {
        ($device:expr) => {{
            let (mut load, mut dlogits) = (vec![9; experts], vec![9.0; tokens * experts]);
            let aux =
                Aux { sequences: View::of(&bounds), counts: View::of(&counts), factors: View::of(&factors) };
            let args = RouteBwdArgs {
                logits: View::of(&logits),
                ids: View::of(&ids),
                dweights: View::of(&dweights),
                row_of_slot: losses.then(|| View::of(&rows[..])),
                aux: losses.then_some(aux),
                z_factor: losses.then(|| View::of(&[0.1][..])),
                load: Some(ViewMut::of(&mut load)),
                dlogits: ViewMut::of(&mut dlogits),
            };
            launch!($device, RouteBwd<f32>, dims, args).unwrap();
            (load, dlogits)
        }};
    }
    let want = backward!(&Host);
    for cpu in cpus() {
        let got = backward!(&cpu);
        assert_eq!(got.0, want.0, "{cpu:?} {dims:?}");
        assert_close(&got.1, &want.1, 1e-6, "dlogits");
    }
}

#[test]
fn every_rule_and_loss() {
    for score in [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid] {
        for (normalize, accumulate) in [(false, true), (true, false)] {
            let rule = RouteRule { score, normalize, scale: 1.5, ..RouteRule::default() };
            for (tokens, experts, top_k) in [(0, 4, 2), (1, 1, 1), (150, 9, 9), (70, 40, 3)] {
                let dims = RouteBwdDims { tokens, experts, top_k, sequences: 3, rule, accumulate };
                agree(dims, false);
                agree(dims, true);
            }
        }
    }
}
