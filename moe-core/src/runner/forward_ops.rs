//! The launches of forward: router, sort, routed experts, combine.

use super::edge::{self, Terms, Tokens};
use super::exchange::{Exchange, To};
use super::groups::Groups;
use super::shared_ops::shared_term;
use super::{Plan, Rows, Runner, Saved};
use crate::collective::{Collective, Reduce};
use crate::config::{BalanceLoss, Capacity, DropPolicy, MoeConfig, ScoreOrder};
use crate::error::{Error, OpId, expect};
use crate::layer::MoeLayer;
use crate::ops::{
    ExpertDown, ExpertDownArgs, ExpertUp, ExpertUpArgs, MoeDevice, Route, RouteArgs, RouteStats,
    RouteStatsArgs, Sort, SortArgs,
};
use crate::scalar::Scalar;
use crate::view::{In, first, first_mut, whole, whole_mut};

/// Where a routing comes from, and whether the losses look at it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Inference,
    Training,
    /// recorded ids, staged in `slot_of_row` until Sort overwrites it
    Record,
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    pub(super) fn route_ops(
        &mut self,
        layer: &MoeLayer<D, T>,
        tokens: Tokens<'_, D, T>,
        saved: &mut Saved<D, T>,
        plan: &Plan,
        from: From,
    ) -> Result<(), Error<D::Error>> {
        let MoeConfig { experts, top_k, rule, .. } = layer.config;
        let routing = &mut saved.routing;
        let args = RouteArgs {
            x: tokens.routed,
            gate: layer.packed.0.gate.weight(&layer.weights.gate),
            gate_bias: layer.weights.gate_bias.as_ref().map(whole::<D, T>),
            selection_bias: layer.selection_bias.as_ref().map(whole::<D, T::Acc>),
            forced_ids: match from {
                From::Record => Some(first::<D, u32>(&routing.slot_of_row, plan.slots)?),
                From::Training | From::Inference => None,
            },
            stamp: rule.stamped().then(|| whole::<D, u32>(&routing.stamp)),
            logits: first_mut::<D, T::Acc>(&mut routing.logits, plan.tokens * experts)?,
            ids: first_mut::<D, u32>(&mut routing.ids, plan.slots)?,
            weights: first_mut::<D, T::Acc>(&mut routing.weights, plan.slots)?,
            non_finite: whole_mut::<D, u32>(&mut routing.non_finite),
        };
        self.session.run::<Route<T>>(&plan.route(), args)?;
        if let (From::Training | From::Record, Some(losses)) = (from, &mut routing.losses) {
            let (sequences, own) = (plan.sequences, routing.share.own_routed());
            let (logits, ids) = (own.start * experts..own.end * experts, own.start * top_k..own.end * top_k);
            let args = RouteStatsArgs {
                logits: whole::<D, T::Acc>(&routing.logits).slice(logits)?,
                ids: whole::<D, u32>(&routing.ids).slice(ids)?,
                sequences: first::<D, u32>(&losses.sequences, sequences + 1)?,
                counts: first_mut::<D, u32>(&mut losses.counts, sequences * experts)?,
                prob_sums: first_mut::<D, T::Acc>(&mut losses.prob_sums, sequences * experts)?,
                z_sum: whole_mut::<D, T::Acc>(&mut losses.z_sum),
            };
            self.session.run::<RouteStats<T>>(&plan.stats(own.len()), args)?;
        }
        self.sort_op(saved, plan)?;
        if from == From::Inference { Ok(()) } else { self.sum_counts(saved, plan) }
    }

    /// Sums the counts of the load-balancing loss over the ranks that hold parts of what it is about.
    fn sum_counts(&mut self, saved: &mut Saved<D, T>, plan: &Plan) -> Result<(), Error<D::Error>> {
        let (routing, Groups { tp, cp, dp, .. }) = (&mut saved.routing, &mut self.groups);
        let Some(losses) = &mut routing.losses else {
            return Ok(());
        };
        let over: [Option<&mut C>; 3] = match plan.config.balance.loss {
            Some(BalanceLoss::Sequence(_)) => [Some(tp), Some(cp), None],
            Some(BalanceLoss::Batch(_)) if routing.batch.step_counts.is_empty() => {
                [Some(tp), Some(cp), Some(dp)]
            }
            _ => [None, None, None],
        };
        for group in over.into_iter().flatten().filter(|group| group.size() > 1) {
            let counts = first_mut::<D, u32>(&mut losses.counts, plan.sequences * plan.config.experts)?;
            group.all_reduce::<u32>(self.session.stream(), Reduce::Sum, counts)?;
        }
        Ok(())
    }

    pub(super) fn sort_op(&mut self, saved: &mut Saved<D, T>, plan: &Plan) -> Result<(), Error<D::Error>> {
        let routing = &mut saved.routing;
        let by_score = matches!(routing.config.capacity, Some(Capacity { drop: DropPolicy::ByScore, .. }));
        let experts = routing.config.experts;
        let weights = first::<D, T::Acc>(&routing.weights, plan.slots)?;
        let args = SortArgs {
            ids: first::<D, u32>(&routing.ids, plan.slots)?,
            weights: by_score.then_some(weights),
            offsets: first_mut::<D, u32>(&mut routing.offsets, experts + 1)?,
            row_of_slot: first_mut::<D, u32>(&mut routing.row_of_slot, plan.slots)?,
            slot_of_row: first_mut::<D, u32>(&mut routing.slot_of_row, plan.slots)?,
            counts: first_mut::<D, u32>(&mut routing.counts, experts)?,
            dropped: whole_mut::<D, u32>(&mut routing.dropped),
        };
        self.session.run::<Sort<T>>(&plan.sort(), args)
    }

    pub(super) fn expert_ops(
        &mut self,
        layer: &MoeLayer<D, T>,
        tokens: Tokens<'_, D, T>,
        saved: &mut Saved<D, T>,
        y: &mut Rows<D, T>,
        plan: &Plan,
        training: bool,
    ) -> Result<(), Error<D::Error>> {
        let (width, local) = (layer.config.width, plan.share.local.len());
        expect(OpId("forward"), "y", &[local, width], y.view().len())?;
        let keep = training && !plan.recomputes();
        let mut exchange = self.exchange.take();
        let result = self
            .routed_forward(layer, tokens.routed, saved, exchange.as_mut(), plan, training)
            .and_then(|()| self.shared_forward(layer, tokens.all, saved, plan, keep))
            .and_then(|()| self.leave_forward(layer, saved, exchange.as_ref(), plan, y));
        self.exchange = exchange;
        result
    }

    /// Rows of the routed experts: in `self.y`, or with expert parallelism back in the exchange.
    fn routed_forward(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: In<'_, D, T>,
        saved: &mut Saved<D, T>,
        exchange: Option<&mut Exchange<D, T>>,
        plan: &Plan,
        training: bool,
    ) -> Result<(), Error<D::Error>> {
        let scores_first = layer.config.score_order == ScoreOrder::BeforeExperts;
        let keep = training && !plan.recomputes();
        let Saved { routing, arrived, h, .. } = saved;
        let ep = &mut self.groups.ep;
        let (mut plan, mut exchange) = (plan.clone(), exchange);
        if let (Some(exchange), Some(arrived)) = (&mut exchange, &mut *arrived) {
            plan = exchange.agree(&mut self.session, ep, routing, arrived, &plan)?;
            let (kept, weights, way) = arrived.way(routing, &plan);
            let to = match kept {
                Some(kept) if keep => To::Kept(kept),
                _ => To::Received,
            };
            exchange.rows_out(&mut self.session, ep, x, &way, to)?;
            if training || scores_first {
                exchange.weights_out(&mut self.session, ep, &way, weights)?;
            }
        }
        let dims = plan.routed();
        let side = match (&exchange, &*arrived) {
            (Some(exchange), Some(arrived)) => {
                let x = if keep { arrived.x.as_ref() } else { None };
                let rows = first::<D, T>(x.unwrap_or(&exchange.received), dims.rows * dims.width)?;
                arrived.side(rows)?
            }
            _ => routing.side(x)?,
        };
        let h = match h {
            Some(h) if keep => Some(first_mut::<D, T>(h, dims.rows * dims.up_width())?),
            _ => None,
        };
        let args = ExpertUpArgs {
            x: side.rows,
            index: Some(side.index),
            offsets: side.offsets,
            w13: layer.packed.0.up.weight(&layer.weights.w13),
            b13: layer.weights.b13.as_ref().map(whole::<D, T>),
            weights: scores_first.then_some(side.weights),
            h,
            a: first_mut::<D, T>(&mut self.a, dims.rows * dims.hidden)?,
        };
        self.session.run::<ExpertUp<T>>(&dims, args)?;
        let args = ExpertDownArgs {
            a: first::<D, T>(&self.a, dims.rows * dims.hidden)?,
            offsets: side.offsets,
            w2: layer.packed.0.down.weight(&layer.weights.w2),
            b2: layer.weights.b2.as_ref().map(whole::<D, T>),
            out_index: side.out_index,
            y: first_mut::<D, T>(&mut self.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertDown<T>>(&dims, args)?;
        match (exchange, &*arrived) {
            (Some(exchange), Some(arrived)) => {
                exchange.rows_back(&mut self.session, ep, &arrived.splits, &mut self.y, dims.width)
            }
            _ => Ok(()),
        }
    }

    /// Brings experts and shared experts together in y.
    fn leave_forward(
        &mut self,
        layer: &MoeLayer<D, T>,
        saved: &Saved<D, T>,
        exchange: Option<&Exchange<D, T>>,
        plan: &Plan,
        y: &mut Rows<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let width = layer.config.width;
        let rows = match (exchange, &saved.arrived) {
            (Some(exchange), Some(arrived)) => exchange.returned(&arrived.splits, &self.y),
            _ => &self.y,
        };
        let first_scores = layer.config.score_order == ScoreOrder::BeforeExperts;
        let terms = Terms {
            y: first::<D, T>(rows, plan.slots * width)?,
            row_of_slot: saved.routing.row_of_slot()?,
            weights: if first_scores { None } else { Some(saved.routing.weights()?) },
            router: None,
            shared: [shared_term(&self.shared, &saved.shared_gate, plan)?, None],
        };
        let (split, tp) = (&saved.routing.batch.split, &mut self.groups.tp);
        edge::leave(&mut self.session, tp, self.edge.as_mut(), plan, split, &terms, y.view_mut())
    }
}
