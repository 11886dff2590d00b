//! RouteBwd and GateBwd against finite differences of Route and RouteStats, in f64.

use crate::run::{read, run, write};
use approx::assert_abs_diff_eq;
use moe_core::ops::{
    Aux, GateBwd, GateBwdArgs, GateBwdDims, Jitter, Route, RouteArgs, RouteBwd, RouteBwdArgs, RouteBwdDims,
    RouteDims, RouteRule, RouteStats, RouteStatsArgs, RouteStatsDims, ScoreFunction, Stamp, Weight,
};
use moe_tests::Random;

const TOKENS: usize = 5;
const WIDTH: usize = 4;
const EXPERTS: usize = 6;
const TOP_K: usize = 3;
const SEQUENCES: [u32; 3] = [0, 2, 5];

/// A router and what its loss looks at: `<dweights, weights>`, the balancing loss, the z-loss.
struct Router {
    rule: RouteRule,
    x: Vec<f64>,
    gate: Vec<f64>,
    bias: Vec<f64>,
    stamp: [u32; moe_core::ops::STAMP],
    dweights: Vec<f64>,
    ids: Vec<u32>,
    counts: Vec<u32>,
    factors: Vec<f64>,
    z_factor: f64,
}

impl Router {
    fn new(rule: RouteRule, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut router = Self {
            rule,
            x: random.scaled(TOKENS * WIDTH, 2.0),
            gate: random.values(EXPERTS * WIDTH),
            bias: random.values(EXPERTS),
            stamp: Stamp { seed, step: 3, layer: 1, first_token: 40 }.words(),
            dweights: random.values(TOKENS * TOP_K),
            ids: Vec::new(),
            counts: vec![0; 2 * EXPERTS],
            factors: random.scores(2),
            z_factor: 0.3,
        };
        router.ids = router.forward(None).1;
        router.counts = router.stats(&router.forward(None).0).0;
        router
    }

    /// Logits, ids and weights; with fixed ids where a difference must not change the selection.
    fn forward(&self, forced: Option<&[u32]>) -> (Vec<f64>, Vec<u32>, Vec<f64>) {
        let (mut logits, mut ids) = (vec![0.0; TOKENS * EXPERTS], vec![0; TOKENS * TOP_K]);
        let (mut weights, mut non_finite) = (vec![0.0; TOKENS * TOP_K], [0]);
        let args = RouteArgs {
            x: read(&self.x),
            gate: Weight::Plain(read(&self.gate)),
            gate_bias: Some(read(&self.bias)),
            selection_bias: None,
            forced_ids: forced.map(read),
            stamp: Some(read(&self.stamp)),
            logits: write(&mut logits),
            ids: write(&mut ids),
            weights: write(&mut weights),
            non_finite: write(&mut non_finite),
        };
        let dims =
            RouteDims { tokens: TOKENS, width: WIDTH, experts: EXPERTS, top_k: TOP_K, rule: self.rule };
        run::<Route<f64>>(dims, args);
        (logits, ids, weights)
    }

    fn stats(&self, logits: &[f64]) -> (Vec<u32>, Vec<f64>, f64) {
        let (mut counts, mut sums, mut z) = (vec![0; 2 * EXPERTS], vec![0.0; 2 * EXPERTS], [0.0]);
        let args = RouteStatsArgs {
            logits: read(logits),
            ids: read(&self.ids),
            sequences: read(&SEQUENCES),
            counts: write(&mut counts),
            prob_sums: write(&mut sums),
            z_sum: write(&mut z),
        };
        let dims = RouteStatsDims {
            tokens: TOKENS,
            experts: EXPERTS,
            top_k: TOP_K,
            sequences: 2,
            score: self.rule.score,
        };
        run::<RouteStats<f64>>(dims, args);
        (counts, sums, z[0])
    }

    fn loss(&self) -> f64 {
        let (logits, _, weights) = self.forward(Some(&self.ids));
        let (_, sums, z) = self.stats(&logits);
        let through_weights: f64 = weights.iter().zip(&self.dweights).map(|(w, dw)| w * dw).sum();
        let balance = |at: usize| self.factors[at / EXPERTS] * f64::from(self.counts[at]) * sums[at];
        through_weights + (0..sums.len()).map(balance).sum::<f64>() + self.z_factor * z
    }

    fn dlogits(&self) -> Vec<f64> {
        let (logits, ..) = self.forward(Some(&self.ids));
        let mut dlogits = vec![f64::NAN; logits.len()];
        let args = RouteBwdArgs {
            logits: read(&logits),
            ids: read(&self.ids),
            dweights: read(&self.dweights),
            row_of_slot: None,
            aux: Some(Aux {
                sequences: read(&SEQUENCES),
                counts: read(&self.counts),
                factors: read(&self.factors),
            }),
            z_factor: Some(read(std::slice::from_ref(&self.z_factor))),
            load: None,
            dlogits: write(&mut dlogits),
        };
        let dims = RouteBwdDims {
            tokens: TOKENS,
            experts: EXPERTS,
            top_k: TOP_K,
            sequences: 2,
            rule: self.rule,
            accumulate: false,
        };
        run::<RouteBwd<f64>>(dims, args);
        dlogits
    }

    /// Gradients of x, gate and gate bias.
    fn gradients(&self) -> [Vec<f64>; 3] {
        let dlogits = self.dlogits();
        let mut gradients = [&self.x, &self.gate, &self.bias].map(|like| vec![f64::NAN; like.len()]);
        let [dx, dgate, dbias] = &mut gradients;
        let args = GateBwdArgs {
            dlogits: read(&dlogits),
            x: read(&self.x),
            gate: Weight::Plain(read(&self.gate)),
            stamp: Some(read(&self.stamp)),
            dx: write(dx),
            dgate: write(dgate),
            dbias: Some(write(dbias)),
        };
        let jitter = self.rule.jitter;
        let dims = GateBwdDims { tokens: TOKENS, width: WIDTH, experts: EXPERTS, jitter, accumulate: false };
        run::<GateBwd<f64>>(dims, args);
        gradients
    }

    fn slope(&mut self, which: fn(&mut Self) -> &mut Vec<f64>, at: usize) -> f64 {
        let step = 1e-5;
        let kept = which(self)[at];
        let mut loss_at = |value: f64| {
            which(self)[at] = value;
            self.loss()
        };
        let slope = (loss_at(kept + step) - loss_at(kept - step)) / (2.0 * step);
        which(self)[at] = kept;
        slope
    }
}

fn every_gradient_is_a_slope(rule: RouteRule, seed: u64) {
    let mut router = Router::new(rule, seed);
    let gradients = router.gradients();
    let tensors: [fn(&mut Router) -> &mut Vec<f64>; 3] = [|r| &mut r.x, |r| &mut r.gate, |r| &mut r.bias];
    for (which, gradient) in tensors.into_iter().zip(gradients) {
        for (at, gradient) in gradient.into_iter().enumerate() {
            assert_abs_diff_eq!(router.slope(which, at), gradient, epsilon = 1e-7);
        }
    }
}

#[test]
fn router_gradients_are_slopes_for_every_rule() {
    let scores = [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid];
    for (nth, score) in scores.into_iter().enumerate() {
        for normalize in [false, true] {
            let rule = RouteRule { score, normalize, scale: 1.7, ..RouteRule::default() };
            every_gradient_is_a_slope(rule, nth as u64);
            let groups = RouteRule { groups: 3, groups_kept: 2, ..rule };
            every_gradient_is_a_slope(groups, 10 + nth as u64);
        }
    }
}

#[test]
fn jitter_is_part_of_the_slope() {
    let jitter = Some(Jitter { amplitude: 0.5 });
    every_gradient_is_a_slope(RouteRule { jitter, ..RouteRule::default() }, 4);
}

#[test]
fn a_slot_that_is_no_experts_has_no_gradient() {
    let rule = RouteRule { score: ScoreFunction::Sigmoid, ..RouteRule::default() };
    let mut router = Router::new(rule, 6);
    (router.factors, router.z_factor) = (vec![0.0; 2], 0.0);
    router.ids[..TOP_K].fill(EXPERTS as u32);
    assert!(router.dlogits()[..EXPERTS].iter().all(|gradient| *gradient == 0.0));
}
