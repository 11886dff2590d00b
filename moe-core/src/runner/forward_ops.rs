//! The launches of forward: router, sort, routed experts, shared experts, combine.

use super::{Plan, Rows, Runner, Saved};
use crate::collective::Collective;
use crate::config::{Capacity, DropPolicy, MoeConfig, ScoreOrder};
use crate::error::{Error, OpId, expect};
use crate::layer::MoeLayer;
use crate::ops::{
    Base, Combine, CombineArgs, ExpertDown, ExpertDownArgs, ExpertUp, ExpertUpArgs, MoeDevice, Route,
    RouteArgs, RouteStats, RouteStatsArgs, Selection, Sort, SortArgs,
};
use crate::scalar::Scalar;
use crate::view::{first, first_mut, whole, whole_mut};

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
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        plan: &Plan,
        from: From,
    ) -> Result<Plan, Error<D::Error>> {
        let MoeConfig { experts, rule, .. } = layer.config;
        let routing = &mut saved.routing;
        let stamped = rule.jitter.is_some() || rule.selection == Selection::RoundRobin;
        let args = RouteArgs {
            x: x.view(),
            gate: layer.packed.0.gate.weight(&layer.weights.gate),
            gate_bias: layer.weights.gate_bias.as_ref().map(whole::<D, T>),
            selection_bias: layer.selection_bias.as_ref().map(whole::<D, T::Acc>),
            forced_ids: match from {
                From::Record => Some(first::<D, u32>(&routing.slot_of_row, plan.slots)?),
                From::Training | From::Inference => None,
            },
            stamp: stamped.then(|| whole::<D, u32>(&routing.stamp)),
            logits: first_mut::<D, T::Acc>(&mut routing.logits, plan.tokens * experts)?,
            ids: first_mut::<D, u32>(&mut routing.ids, plan.slots)?,
            weights: first_mut::<D, T::Acc>(&mut routing.weights, plan.slots)?,
            non_finite: whole_mut::<D, u32>(&mut routing.non_finite),
        };
        self.session.run::<Route<T>>(&plan.route(), args)?;
        if let (From::Training | From::Record, Some(losses)) = (from, &mut routing.losses) {
            let sequences = plan.sequences;
            let args = RouteStatsArgs {
                logits: first::<D, T::Acc>(&routing.logits, plan.tokens * experts)?,
                ids: first::<D, u32>(&routing.ids, plan.slots)?,
                sequences: first::<D, u32>(&losses.sequences, sequences + 1)?,
                counts: first_mut::<D, u32>(&mut losses.counts, sequences * experts)?,
                prob_sums: first_mut::<D, T::Acc>(&mut losses.prob_sums, sequences * experts)?,
                z_sum: whole_mut::<D, T::Acc>(&mut losses.z_sum),
            };
            self.session.run::<RouteStats<T>>(&plan.stats(), args)?;
        }
        self.sort_op(saved, plan)?;
        Ok(*plan)
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
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        y: &mut Rows<D, T>,
        plan: &Plan,
        training: bool,
    ) -> Result<(), Error<D::Error>> {
        let dims = plan.routed();
        let first_scores = layer.config.score_order == ScoreOrder::BeforeExperts;
        expect(OpId("forward"), "y", &[plan.tokens, layer.config.width], y.view().len())?;
        let keep = training && !plan.recomputes();
        let h_len = dims.rows * dims.up_width();
        let h = match &mut saved.h {
            Some(h) if keep => Some(first_mut::<D, T>(h, h_len)?),
            _ => None,
        };
        let args = ExpertUpArgs {
            x: x.view(),
            index: Some(saved.routing.slot_of_row()?),
            offsets: saved.routing.offsets()?,
            w13: layer.packed.0.up.weight(&layer.weights.w13),
            b13: layer.weights.b13.as_ref().map(whole::<D, T>),
            weights: if first_scores { Some(saved.routing.weights()?) } else { None },
            h,
            a: first_mut::<D, T>(&mut self.a, dims.rows * dims.hidden)?,
        };
        self.session.run::<ExpertUp<T>>(&dims, args)?;
        let args = ExpertDownArgs {
            a: first::<D, T>(&self.a, dims.rows * dims.hidden)?,
            offsets: saved.routing.offsets()?,
            w2: layer.packed.0.down.weight(&layer.weights.w2),
            b2: layer.weights.b2.as_ref().map(whole::<D, T>),
            out_index: None,
            y: first_mut::<D, T>(&mut self.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertDown<T>>(&dims, args)?;
        self.shared_forward(layer, x, saved, plan, keep)?;
        let shared = match (&self.shared, layer.config.shared) {
            (Some(shared), Some(config)) => Some(Base {
                rows: first::<D, T>(&shared.y, plan.tokens * dims.width)?,
                scale: match (&saved.shared_gate, config.gated) {
                    (Some(gate), true) => Some(first::<D, T::Acc>(&gate.weights, plan.tokens)?),
                    _ => None,
                },
            }),
            _ => None,
        };
        let args = CombineArgs {
            y: first::<D, T>(&self.y, dims.rows * dims.width)?,
            row_of_slot: saved.routing.row_of_slot()?,
            weights: if first_scores { None } else { Some(saved.routing.weights()?) },
            base: [shared, None, None],
            out: y.view_mut(),
        };
        self.session.run::<Combine<T>>(&plan.combine(), args)
    }

    /// The shared experts are one group of all tokens.
    fn shared_forward(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: &Rows<D, T>,
        saved: &mut Saved<D, T>,
        plan: &Plan,
        keep: bool,
    ) -> Result<(), Error<D::Error>> {
        let (Some(weights), Some(packed), Some(space)) =
            (&layer.weights.shared, &layer.packed.1, &mut self.shared)
        else {
            return Ok(());
        };
        let dims = plan.shared();
        if let (Some(gate), Some(gate_weight)) = (&mut saved.shared_gate, &weights.gate) {
            let args = RouteArgs {
                x: x.view(),
                gate: packed.gate.weight(gate_weight),
                gate_bias: None,
                selection_bias: None,
                forced_ids: None,
                stamp: None,
                logits: first_mut::<D, T::Acc>(&mut gate.logits, plan.tokens)?,
                ids: first_mut::<D, u32>(&mut gate.ids, plan.tokens)?,
                weights: first_mut::<D, T::Acc>(&mut gate.weights, plan.tokens)?,
                non_finite: whole_mut::<D, u32>(&mut gate.non_finite),
            };
            self.session.run::<Route<T>>(&plan.shared_gate().route(), args)?;
        }
        let h = match &mut saved.shared_h {
            Some(h) if keep => Some(first_mut::<D, T>(h, dims.rows * dims.up_width())?),
            _ => None,
        };
        let args = ExpertUpArgs {
            x: x.view(),
            index: None,
            offsets: whole::<D, u32>(&self.whole.buffer),
            w13: packed.up.weight(&weights.w13),
            b13: None,
            weights: None,
            h,
            a: first_mut::<D, T>(&mut space.a, dims.rows * dims.hidden)?,
        };
        self.session.run::<ExpertUp<T>>(&dims, args)?;
        let args = ExpertDownArgs {
            a: first::<D, T>(&space.a, dims.rows * dims.hidden)?,
            offsets: whole::<D, u32>(&self.whole.buffer),
            w2: packed.down.weight(&weights.w2),
            b2: None,
            out_index: None,
            y: first_mut::<D, T>(&mut space.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertDown<T>>(&dims, args)
    }
}
