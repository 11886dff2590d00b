//! The launches of the shared experts, forward and backward: one group of all tokens, with a gate that is a router of one expert.

use super::backward_ops::Step;
use super::saved::SharedGate;
use super::{Backward, Plan, Runner, Saved, Shared, SharedGateBackward};
use crate::collective::Collective;
use crate::device::Device;
use crate::error::{Error, ShapeError};
use crate::layer::{Grads, MoeLayer};
use crate::ops::{
    Base, ExpertDown, ExpertDownArgs, ExpertDownBwd, ExpertDownBwdArgs, ExpertUp, ExpertUpArgs, ExpertUpBwd,
    ExpertUpBwdArgs, ExpertWgrad, ExpertWgradArgs, GateBwd, GateBwdArgs, MoeDevice, Route, RouteArgs,
    RouteBwd, RouteBwdArgs,
};
use crate::scalar::Scalar;
use crate::view::{In, first, first_mut, whole, whole_mut};

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Their output in `self.shared.y`, and the gate's weights in `saved`.
    pub(super) fn shared_forward(
        &mut self,
        layer: &MoeLayer<D, T>,
        x: In<'_, D, T>,
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
                x,
                gate: packed.gate.weight(gate_weight),
                gate_bias: None,
                selection_bias: None,
                forced_ids: None,
                stamp: None,
                logits: first_mut::<D, T::Acc>(&mut gate.logits, plan.share.total)?,
                ids: first_mut::<D, u32>(&mut gate.ids, plan.share.total)?,
                weights: first_mut::<D, T::Acc>(&mut gate.weights, plan.share.total)?,
                non_finite: whole_mut::<D, u32>(&mut gate.non_finite),
            };
            self.session.run::<Route<T>>(&plan.shared_gate().route(), args)?;
        }
        let h = match &mut saved.shared_h {
            Some(h) if keep => Some(first_mut::<D, T>(h, dims.rows * dims.up_width())?),
            _ => None,
        };
        let args = ExpertUpArgs {
            x,
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
                x: x.all,
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
            dout: dy.all,
            index: None,
            offsets,
            w2: packed.down_bwd.weight(&weights.w2),
            b2: None,
            b13: None,
            weights: match gate {
                Some(gate) => Some(first::<D, T::Acc>(&gate.weights, plan.share.total)?),
                None => None,
            },
            scores_first: false,
            h: first_mut::<D, T>(h, h_len)?,
            a: first_mut::<D, T>(&mut forward.a, a_len)?,
            ds: match (gate, &mut space.gate) {
                (Some(_), Some(gate)) => Some(first_mut::<D, T::Acc>(&mut gate.ds, plan.share.total)?),
                _ => None,
            },
        };
        self.session.run::<ExpertDownBwd<T>>(&dims, args)?;
        let products = [
            (dy.all, first::<D, T>(&forward.a, a_len)?, &mut grads.w2, Plan::wgrad_down(&dims, *accumulate)),
            (first::<D, T>(h, h_len)?, x.all, &mut grads.w13, Plan::wgrad_up(&dims, *accumulate)),
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
            logits: first::<D, T::Acc>(&gate.logits, plan.share.total)?,
            ids: first::<D, u32>(&gate.ids, plan.share.total)?,
            dweights: first::<D, T::Acc>(ds, plan.share.total)?,
            row_of_slot: None,
            aux: None,
            z_factor: None,
            load: None,
            dlogits: first_mut::<D, T::Acc>(dlogits, plan.share.total)?,
        };
        self.session.run::<RouteBwd<T>>(&gate_plan.route_bwd(gate_plan.tokens, false), args)?;
        let args = GateBwdArgs {
            dlogits: first::<D, T::Acc>(dlogits, plan.share.total)?,
            x: x.all,
            gate: packed.gate.weight(weight),
            stamp: None,
            dx: first_mut::<D, T>(dx, plan.share.total * dims.width)?,
            dgate: whole_mut::<D, T::Acc>(dgate),
            dbias: None,
        };
        self.session.run::<GateBwd<T>>(&gate_plan.gate_bwd(*accumulate), args)
    }
}

/// What the shared experts add to every token, if there are some.
pub(super) fn shared_term<'a, D: Device, T: Scalar>(
    shared: &'a Option<Shared<D, T>>,
    gate: &'a Option<SharedGate<D, T>>,
    plan: &Plan,
) -> Result<Option<Base<'a, D, T>>, ShapeError> {
    let (Some(shared), Some(config)) = (shared, plan.config.shared) else { return Ok(None) };
    let scale = match gate {
        Some(gate) if config.gated => Some(first::<D, T::Acc>(&gate.weights, plan.share.total)?),
        _ => None,
    };
    Ok(Some(Base { rows: first::<D, T>(&shared.y, plan.share.total * plan.config.width)?, scale }))
}
