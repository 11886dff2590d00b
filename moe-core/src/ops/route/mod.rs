//! Route: each token's K experts and their weights.
//!
//! Gate logits are one chain of fused multiply-adds over d = 0..D-1 in order from +0, then the gate's bias is added. The
//! scores' sum over experts is made of 32 strided partial sums, halved 16, 8, 4, 2, 1. A token takes the K experts of highest
//! choice score (score plus selection bias; ties: lower id), inside the groups of highest sum of their two best choice scores
//! (ties: lower group). The bias selects but does not weigh. All of it in the accumulation type, with the same bits
//! on every backend. With [`GateMath::Native`] the logits alone are free to differ; all that follows is the same function of them.

mod choose;
mod rule;

pub(crate) use choose::{scores, sum_over_experts};
pub use rule::{GateMath, RouteRule, ScoreFunction, Selection};

use super::jitter::{check_stamp, read_stamp};
use super::{Jitter, PackDims, PackUse, Weight, jittered};
use crate::device::{Device, Op};
use crate::error::{OpId, ShapeError, expect, within};
use crate::host::Host;
use crate::scalar::{Accum, Scalar};
use crate::view::{In, Out, View};
use alloc::vec;
use choose::{choose, is_nan, limit_groups, weigh};
use core::marker::PhantomData;

/// Routing of tokens to experts, for storage type `T`.
pub struct Route<T>(PhantomData<T>);

/// Sizes and settings of [`Route`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteDims {
    /// T
    pub tokens: usize,
    /// D
    pub width: usize,
    /// E
    pub experts: usize,
    /// K, at most E
    pub top_k: usize,
    /// the router
    pub rule: RouteRule,
}

impl RouteDims {
    /// Dimensions of the gate in the layout that [`Route`] reads.
    pub fn pack(&self) -> PackDims {
        PackDims { groups: 1, rows: self.experts, cols: self.width, use_: PackUse::Gate }
    }

    /// Checks the arguments of `op`, which routes.
    pub(crate) fn check<D: Device, T: Scalar>(
        &self,
        op: OpId,
        args: &RouteArgs<'_, D, T>,
    ) -> Result<(), ShapeError> {
        let RouteDims { tokens, width, experts, top_k, rule } = *self;
        within(op, "experts", 1, i32::MAX as usize, experts)?;
        within(op, "top_k", 1, experts, top_k)?;
        within(op, "groups", 1, experts, rule.groups)?;
        within(op, "groups_kept", 1, rule.groups, rule.groups_kept)?;
        if experts % rule.groups != 0 || rule.groups_kept * (experts / rule.groups) < top_k {
            let why = "must divide experts and leave at least top_k to choose from";
            return Err(ShapeError::Combination { op, what: "groups", why });
        }
        expect(op, "x", &[tokens, width], args.x.len())?;
        args.gate.check(op, "gate", &[experts, width])?;
        if let Some(bias) = &args.gate_bias {
            expect(op, "gate_bias", &[experts], bias.len())?;
        }
        if let Some(bias) = &args.selection_bias {
            expect(op, "selection_bias", &[experts], bias.len())?;
        }
        if let Some(ids) = &args.forced_ids {
            expect(op, "forced_ids", &[tokens, top_k], ids.len())?;
        }
        let counted = rule.selection == Selection::RoundRobin && args.forced_ids.is_none();
        check_stamp(op, rule.jitter.is_some() || counted, args.stamp.map(|s| s.len()))?;
        expect(op, "logits", &[tokens, experts], args.logits.len())?;
        expect(op, "ids", &[tokens, top_k], args.ids.len())?;
        expect(op, "weights", &[tokens, top_k], args.weights.len())?;
        expect(op, "non_finite", &[1], args.non_finite.len())
    }
}

/// Views of [`Route`].
pub struct RouteArgs<'a, D: Device, T: Scalar> {
    /// (tokens, width)
    pub x: In<'a, D, T>,
    /// (experts, width)
    pub gate: Weight<'a, D, T>,
    /// (experts), part of the logits
    pub gate_bias: Option<In<'a, D, T>>,
    /// (experts), takes part in selection only
    pub selection_bias: Option<In<'a, D, T::Acc>>,
    /// (tokens, top_k): use these ids instead of choosing; an id of `experts` or more is a dropped slot
    pub forced_ids: Option<In<'a, D, u32>>,
    /// ([`STAMP`](super::STAMP)): needed by jitter and forced balance
    pub stamp: Option<In<'a, D, u32>>,
    /// (tokens, experts), overwritten
    pub logits: Out<'a, D, T::Acc>,
    /// (tokens, top_k), overwritten; a chosen NaN score gives the id `experts`
    pub ids: Out<'a, D, u32>,
    /// (tokens, top_k), overwritten; 0 where the id is `experts`
    pub weights: Out<'a, D, T::Acc>,
    /// (1), overwritten: logits that are NaN or infinite
    pub non_finite: Out<'a, D, u32>,
}

impl<D: Device, T: Scalar> RouteArgs<'_, D, T> {
    /// The same views for a while.
    pub fn reborrow(&mut self) -> RouteArgs<'_, D, T> {
        RouteArgs {
            x: self.x,
            gate: self.gate,
            gate_bias: self.gate_bias,
            selection_bias: self.selection_bias,
            forced_ids: self.forced_ids,
            stamp: self.stamp,
            logits: self.logits.reborrow(),
            ids: self.ids.reborrow(),
            weights: self.weights.reborrow(),
            non_finite: self.non_finite.reborrow(),
        }
    }
}

impl<T: Scalar> Op for Route<T> {
    const ID: OpId = OpId("route");
    type Dims = RouteDims;
    type Args<'a, D: Device> = RouteArgs<'a, D, T>;

    fn check<D: Device>(dims: &RouteDims, args: &Self::Args<'_, D>) -> Result<(), ShapeError> {
        dims.check(Self::ID, args)
    }

    fn reference(dims: &RouteDims, args: Self::Args<'_, Host>) -> Result<(), ShapeError> {
        let RouteDims { tokens, width, experts, top_k, rule } = *dims;
        let (x, gate) = (args.x.host(), args.gate.host());
        let (gate_bias, bias) = (args.gate_bias.map(View::host), args.selection_bias.map(View::host));
        let (forced, stamp) = (args.forced_ids.map(View::host), read_stamp(args.stamp.map(View::host)));
        let (logits, ids, weights) = (args.logits.host(), args.ids.host(), args.weights.host());
        let first_slot = stamp.first_token.wrapping_mul(top_k as u64);
        let mut choice = vec![T::Acc::ZERO; experts];
        let mut non_finite = 0;
        for token in 0..tokens {
            let key = Jitter::key(&stamp, token);
            let row = &x[token * width..(token + 1) * width];
            let logits = &mut logits[token * experts..(token + 1) * experts];
            for (expert, logit) in logits.iter_mut().enumerate() {
                let gate = &gate[expert * width..(expert + 1) * width];
                let mut sum = T::Acc::ZERO;
                for d in 0..width {
                    sum = jittered(rule.jitter, key, d, row[d].widen()).fused(gate[d].widen(), sum);
                }
                *logit = sum + gate_bias.map_or(T::Acc::ZERO, |bias| bias[expert].widen());
                non_finite += u32::from(!logit.finite());
            }
            let slots = token * top_k..(token + 1) * top_k;
            let (ids, weights) = (&mut ids[slots.clone()], &mut weights[slots.clone()]);
            let scores = scores(rule.score, logits);
            match (forced, rule.selection) {
                (Some(forced), _) => ids.copy_from_slice(&forced[slots]),
                (None, Selection::RoundRobin) => {
                    for (slot, id) in slots.zip(ids.iter_mut()) {
                        *id = (first_slot.wrapping_add(slot as u64) % experts as u64) as u32;
                    }
                }
                (None, Selection::TopK) => {
                    for (expert, choice) in choice.iter_mut().enumerate() {
                        *choice = scores[expert] + bias.map_or(T::Acc::ZERO, |bias| bias[expert]);
                    }
                    limit_groups(&rule, &mut choice);
                    choose(&mut choice, ids);
                }
            }
            for id in ids.iter_mut() {
                let known = scores.get(*id as usize).is_some_and(|score| !is_nan(*score));
                *id = if known { *id } else { experts as u32 };
            }
            weigh(&rule, &scores, ids, weights);
        }
        args.non_finite.host()[0] = non_finite;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Kernel;
    use crate::view::ViewMut;
    use alloc::vec::Vec;

    fn route(rule: RouteRule, top_k: usize, logits: &[f32]) -> (Vec<u32>, Vec<f32>, u32) {
        let experts = logits.len();
        let dims = RouteDims { tokens: 1, width: experts, experts, top_k, rule };
        let mut gate = vec![0.0; experts * experts];
        (0..experts).for_each(|e| gate[e * experts + e] = 1.0);
        let (mut out, mut ids, mut weights, mut bad) =
            (vec![0.0; experts], vec![9; top_k], vec![9.0; top_k], [9]);
        // A product with an identity gate would turn one NaN into a row of them: give the row as the bias.
        let zeros = vec![0.0; experts];
        let args = RouteArgs::<Host, f32> {
            x: View::of(&zeros),
            gate: Weight::Plain(View::of(&gate)),
            gate_bias: Some(View::of(logits)),
            selection_bias: None,
            forced_ids: None,
            stamp: None,
            logits: ViewMut::of(&mut out),
            ids: ViewMut::of(&mut ids),
            weights: ViewMut::of(&mut weights),
            non_finite: ViewMut::of(&mut bad),
        };
        Route::<f32>::check(&dims, &args).unwrap();
        Kernel::<Route<f32>>::launch(&Host, &(), &dims, args, ViewMut::of(&mut [])).unwrap();
        (ids, weights, bad[0])
    }

    #[test]
    fn ties_go_to_the_lower_expert() {
        let (ids, ..) = route(RouteRule::default(), 3, &[1.0, 2.0, 2.0, 1.0]);
        assert_eq!(ids, [1, 2, 0]);
    }

    #[test]
    fn a_nan_logit_is_never_an_expert() {
        let rule = RouteRule { score: ScoreFunction::Sigmoid, normalize: true, ..RouteRule::default() };
        let (ids, weights, bad) = route(rule, 3, &[f32::NAN, 0.0, f32::INFINITY]);
        assert_eq!((ids, bad), (vec![2, 1, 3], 2));
        assert_eq!(weights, [1.0 / 1.5, 0.5 / 1.5, 0.0]);
    }

    #[test]
    fn a_softmax_of_nan_drops_the_whole_token() {
        let (ids, weights, bad) = route(RouteRule::default(), 2, &[f32::NAN, 0.0, 1.0]);
        assert_eq!((ids, weights, bad), (vec![3, 3], vec![0.0, 0.0], 1));
    }

    #[test]
    fn groups_are_ranked_by_their_two_best() {
        let rule = RouteRule {
            score: ScoreFunction::SoftmaxTopK,
            groups: 2,
            groups_kept: 1,
            ..RouteRule::default()
        };
        let (ids, ..) = route(rule, 2, &[5.0, 0.0, 0.0, 3.0, 3.0, 0.0]);
        assert_eq!(ids, [3, 4]);
    }

    #[test]
    fn the_exact_gate_is_the_default_and_all_that_the_host_has() {
        let exact = RouteRule::default();
        assert_eq!(exact.gate, GateMath::Exact);
        let native = RouteRule { gate: GateMath::Native, ..exact };
        let logits = [0.3, -1.0, 0.7, 0.1];
        assert_eq!(route(native, 2, &logits), route(exact, 2, &logits));
    }

    #[test]
    fn the_sum_over_experts_does_not_depend_on_how_it_is_fed() {
        let values: Vec<f32> = (0..100).map(|i| 1.0 / (i as f32 + 1.0)).collect();
        let mut partial = [0.0_f32; 32];
        values.iter().enumerate().for_each(|(i, v)| partial[i % 32] += v);
        for half in [16, 8, 4, 2, 1] {
            (0..half).for_each(|i| partial[i] += partial[i + half]);
        }
        assert_eq!(sum_over_experts(values.into_iter()), partial[0]);
    }
}
