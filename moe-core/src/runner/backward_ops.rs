//! The launches of backward: routed experts, shared experts, router.

use super::{Backward, Plan, Rows, Runner, Saved, SharedGateBackward};
use crate::collective::Collective;
use crate::config::{BalanceLoss, ScoreOrder};
use crate::device::Device;
use crate::error::Error;
use crate::layer::{Grads, MoeLayer};
use crate::ops::{
    Aux, ExpertDownBwd, ExpertDownBwdArgs, ExpertUp, ExpertUpArgs, ExpertUpBwd, ExpertUpBwdArgs, ExpertWgrad,
    ExpertWgradArgs, GateBwd, GateBwdArgs, MoeDevice, RouteBwd, RouteBwdArgs,
};
use crate::scalar::Scalar;
use crate::view::{first, first_mut, whole, whole_mut};

/// What every part of one backward reads.
pub(super) struct Step<'a, D: Device, T: Scalar> {
    pub(super) layer: &'a MoeLayer<D, T>,
    pub(super) x: &'a Rows<D, T>,
    pub(super) dy: &'a Rows<D, T>,
    pub(super) plan: Plan,
    pub(super) accumulate: bool,
    pub(super) with_router: bool,
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Gradients of w13, b13, w2, b2 and of the weights; rows of dx in `self.y`.
    pub(super) fn routed_backward(
        &mut self,
        step: &Step<'_, D, T>,
        space: &mut Backward<D, T>,
        saved: &mut Saved<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let Step { layer, x, dy, plan, accumulate, .. } = step;
        let (weights, dims) = (&layer.weights, plan.routed());
        let scores_first = layer.config.score_order == ScoreOrder::BeforeExperts;
        let (h_len, a_len) = (dims.rows * dims.up_width(), dims.rows * dims.hidden);
        let Saved { routing, h, .. } = saved;
        if plan.recomputes() {
            // The routing is the saved one: ids are never decided twice.
            let args = ExpertUpArgs {
                x: x.view(),
                index: Some(routing.slot_of_row()?),
                offsets: routing.offsets()?,
                w13: layer.packed.0.up.weight(&weights.w13),
                b13: weights.b13.as_ref().map(whole::<D, T>),
                weights: if scores_first { Some(routing.weights()?) } else { None },
                h: match &mut space.h {
                    Some(h) => Some(first_mut::<D, T>(h, h_len)?),
                    None => None,
                },
                a: first_mut::<D, T>(&mut self.a, a_len)?,
            };
            self.session.run::<ExpertUp<T>>(&dims, args)?;
        }
        let kept = if plan.recomputes() { &mut space.h } else { h };
        let Some(h) = kept.as_mut() else {
            return Err(Error::State("no buffer holds h"));
        };
        let args = ExpertDownBwdArgs {
            dout: dy.view(),
            index: Some(routing.slot_of_row()?),
            offsets: routing.offsets()?,
            w2: layer.packed.0.down_bwd.weight(&weights.w2),
            b2: weights.b2.as_ref().map(whole::<D, T>),
            b13: weights.b13.as_ref().map(whole::<D, T>),
            weights: Some(routing.weights()?),
            scores_first,
            h: first_mut::<D, T>(h, h_len)?,
            a: first_mut::<D, T>(&mut self.a, a_len)?,
            ds: Some(first_mut::<D, T::Acc>(&mut space.ds, plan.slots)?),
        };
        self.session.run::<ExpertDownBwd<T>>(&dims, args)?;
        let after = if scores_first { None } else { Some(routing.weights()?) };
        let before = if scores_first { Some(routing.weights()?) } else { None };
        let args = ExpertWgradArgs {
            left: dy.view(),
            right: first::<D, T>(&self.a, a_len)?,
            index: Some(routing.slot_of_row()?),
            offsets: routing.offsets()?,
            right_weights: None,
            bias_weights: after,
            dw: whole_mut::<D, T::Acc>(&mut grads.weights.w2),
            dbias: grads.weights.b2.as_mut().map(whole_mut::<D, T::Acc>),
        };
        self.session.run::<ExpertWgrad<T>>(&Plan::wgrad_down(&dims, *accumulate), args)?;
        let args = ExpertWgradArgs {
            left: first::<D, T>(h, h_len)?,
            right: x.view(),
            index: Some(routing.slot_of_row()?),
            offsets: routing.offsets()?,
            right_weights: before,
            bias_weights: None,
            dw: whole_mut::<D, T::Acc>(&mut grads.weights.w13),
            dbias: grads.weights.b13.as_mut().map(whole_mut::<D, T::Acc>),
        };
        self.session.run::<ExpertWgrad<T>>(&Plan::wgrad_up(&dims, *accumulate), args)?;
        let args = ExpertUpBwdArgs {
            dz: first::<D, T>(h, h_len)?,
            offsets: routing.offsets()?,
            w13: layer.packed.0.up_bwd.weight(&weights.w13),
            weights: before,
            index: Some(routing.slot_of_row()?),
            out_index: None,
            dx: first_mut::<D, T>(&mut self.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertUpBwd<T>>(&dims, args)
    }

    /// Gradients of the shared experts and their gate; their part of dx in `self.shared.y` and the gate's own buffer.
    pub(super) fn shared_backward(
        &mut self,
        step: &Step<'_, D, T>,
        space: &mut Backward<D, T>,
        saved: &mut Saved<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let Step { layer, x, dy, plan, accumulate, .. } = step;
        let (Some(weights), Some(packed), Some(grads)) =
            (&layer.weights.shared, &layer.packed.1, &mut grads.weights.shared)
        else {
            return Ok(());
        };
        let (Some(forward), Some(space)) = (&mut self.shared, &mut space.shared) else {
            return Err(Error::State("the runner has no room for shared experts"));
        };
        let dims = plan.shared();
        let (h_len, a_len) = (dims.rows * dims.up_width(), dims.rows * dims.hidden);
        let offsets = whole::<D, u32>(&self.whole.buffer);
        if plan.recomputes() {
            let args = ExpertUpArgs {
                x: x.view(),
                index: None,
                offsets,
                w13: packed.up.weight(&weights.w13),
                b13: None,
                weights: None,
                h: match &mut space.h {
                    Some(h) => Some(first_mut::<D, T>(h, h_len)?),
                    None => None,
                },
                a: first_mut::<D, T>(&mut forward.a, a_len)?,
            };
            self.session.run::<ExpertUp<T>>(&dims, args)?;
        }
        let kept = if plan.recomputes() { &mut space.h } else { &mut saved.shared_h };
        let Some(h) = kept.as_mut() else {
            return Err(Error::State("no buffer holds the shared experts' h"));
        };
        let gate = saved.shared_gate.as_ref();
        let args = ExpertDownBwdArgs {
            dout: dy.view(),
            index: None,
            offsets,
            w2: packed.down_bwd.weight(&weights.w2),
            b2: None,
            b13: None,
            weights: match gate {
                Some(gate) => Some(first::<D, T::Acc>(&gate.weights, plan.tokens)?),
                None => None,
            },
            scores_first: false,
            h: first_mut::<D, T>(h, h_len)?,
            a: first_mut::<D, T>(&mut forward.a, a_len)?,
            ds: match (gate, &mut space.gate) {
                (Some(_), Some(gate)) => Some(first_mut::<D, T::Acc>(&mut gate.ds, plan.tokens)?),
                _ => None,
            },
        };
        self.session.run::<ExpertDownBwd<T>>(&dims, args)?;
        let products = [
            (
                dy.view(),
                first::<D, T>(&forward.a, a_len)?,
                &mut grads.w2,
                Plan::wgrad_down(&dims, *accumulate),
            ),
            (first::<D, T>(h, h_len)?, x.view(), &mut grads.w13, Plan::wgrad_up(&dims, *accumulate)),
        ];
        for (left, right, dw, dims) in products {
            let args = ExpertWgradArgs {
                left,
                right,
                index: None,
                offsets,
                right_weights: None,
                bias_weights: None,
                dw: whole_mut::<D, T::Acc>(dw),
                dbias: None,
            };
            self.session.run::<ExpertWgrad<T>>(&dims, args)?;
        }
        let args = ExpertUpBwdArgs {
            dz: first::<D, T>(h, h_len)?,
            offsets,
            w13: packed.up_bwd.weight(&weights.w13),
            weights: None,
            index: None,
            out_index: None,
            dx: first_mut::<D, T>(&mut forward.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertUpBwd<T>>(&dims, args)?;
        let (Some(gate), Some(space), Some(weight), Some(dgate)) =
            (gate, &mut space.gate, &weights.gate, &mut grads.gate)
        else {
            return Ok(());
        };
        let SharedGateBackward { ds, dlogits, dx } = space;
        let gate_plan = plan.shared_gate();
        let args = RouteBwdArgs {
            logits: first::<D, T::Acc>(&gate.logits, plan.tokens)?,
            ids: first::<D, u32>(&gate.ids, plan.tokens)?,
            dweights: first::<D, T::Acc>(ds, plan.tokens)?,
            row_of_slot: None,
            aux: None,
            z_factor: None,
            load: None,
            dlogits: first_mut::<D, T::Acc>(dlogits, plan.tokens)?,
        };
        self.session.run::<RouteBwd<T>>(&gate_plan.route_bwd(false), args)?;
        let args = GateBwdArgs {
            dlogits: first::<D, T::Acc>(dlogits, plan.tokens)?,
            x: x.view(),
            gate: packed.gate.weight(weight),
            stamp: None,
            dx: first_mut::<D, T>(dx, plan.tokens * dims.width)?,
            dgate: whole_mut::<D, T::Acc>(dgate),
            dbias: None,
        };
        self.session.run::<GateBwd<T>>(&gate_plan.gate_bwd(*accumulate), args)
    }

    /// Gradients of gate and gate bias, the load, and the gate's part of dx.
    pub(super) fn router_backward(
        &mut self,
        step: &Step<'_, D, T>,
        space: &mut Backward<D, T>,
        saved: &mut Saved<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let Step { layer, x, plan, accumulate, .. } = step;
        let (routing, experts) = (&saved.routing, plan.config.experts);
        let Some(losses) = &routing.losses else {
            return Err(Error::State("no losses were prepared"));
        };
        let balance = &layer.config.balance;
        let stepwise =
            matches!(balance.loss, Some(BalanceLoss::Batch(_))) && !routing.batch.step_counts.is_empty();
        let aux = match balance.loss {
            Some(_) => Some(Aux {
                sequences: first::<D, u32>(&losses.sequences, plan.sequences + 1)?,
                counts: if stepwise {
                    first::<D, u32>(&losses.step_counts, experts)?
                } else {
                    first::<D, u32>(&losses.counts, plan.sequences * experts)?
                },
                factors: first::<D, T::Acc>(&losses.factors, plan.sequences)?,
            }),
            None => None,
        };
        let args = RouteBwdArgs {
            logits: routing.logits()?,
            ids: routing.ids()?,
            dweights: first::<D, T::Acc>(&space.ds, plan.slots)?,
            row_of_slot: Some(routing.row_of_slot()?),
            aux,
            z_factor: (balance.z_loss > 0.0).then(|| whole::<D, T::Acc>(&losses.z_factor)),
            load: Some(whole_mut::<D, u32>(&mut grads.load)),
            dlogits: first_mut::<D, T::Acc>(&mut space.dlogits, plan.tokens * experts)?,
        };
        self.session.run::<RouteBwd<T>>(&plan.route_bwd(*accumulate), args)?;
        let args = GateBwdArgs {
            dlogits: first::<D, T::Acc>(&space.dlogits, plan.tokens * experts)?,
            x: x.view(),
            gate: layer.packed.0.gate.weight(&layer.weights.gate),
            stamp: layer.config.rule.jitter.map(|_| whole::<D, u32>(&routing.stamp)),
            dx: first_mut::<D, T>(
                space.gate_dx.as_mut().unwrap_or(&mut self.a),
                plan.tokens * plan.config.width,
            )?,
            dgate: whole_mut::<D, T::Acc>(&mut grads.weights.gate),
            dbias: grads.weights.gate_bias.as_mut().map(whole_mut::<D, T::Acc>),
        };
        self.session.run::<GateBwd<T>>(&plan.gate_bwd(*accumulate), args)
    }

    /// Overwrites the gradients of gate and gate bias, and the load, with those of no tokens.
    pub(super) fn router_absent(
        &mut self,
        step: &Step<'_, D, T>,
        space: &mut Backward<D, T>,
        saved: &Saved<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let (layer, plan) = (step.layer, Plan::new(&step.plan.config, 0, 0));
        let args = RouteBwdArgs {
            logits: first::<D, T::Acc>(&saved.routing.logits, 0)?,
            ids: first::<D, u32>(&saved.routing.ids, 0)?,
            dweights: first::<D, T::Acc>(&space.ds, 0)?,
            row_of_slot: None,
            aux: None,
            z_factor: None,
            load: Some(whole_mut::<D, u32>(&mut grads.load)),
            dlogits: first_mut::<D, T::Acc>(&mut space.dlogits, 0)?,
        };
        self.session.run::<RouteBwd<T>>(&plan.route_bwd(false), args)?;
        let args = GateBwdArgs {
            dlogits: first::<D, T::Acc>(&space.dlogits, 0)?,
            x: step.x.view().slice(0..0)?,
            gate: layer.packed.0.gate.weight(&layer.weights.gate),
            stamp: layer.config.rule.jitter.map(|_| whole::<D, u32>(&saved.routing.stamp)),
            dx: first_mut::<D, T>(&mut self.a, 0)?,
            dgate: whole_mut::<D, T::Acc>(&mut grads.weights.gate),
            dbias: grads.weights.gate_bias.as_mut().map(whole_mut::<D, T::Acc>),
        };
        self.session.run::<GateBwd<T>>(&plan.gate_bwd(false), args)
    }
}
