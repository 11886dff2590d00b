//! The launches of backward: routed experts and router.

use super::edge::Tokens;
use super::exchange::{Exchange, To};
use super::{Backward, Plan, Runner, Saved};
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
    pub(super) x: Tokens<'a, D, T>,
    pub(super) dy: Tokens<'a, D, T>,
    pub(super) plan: Plan,
    pub(super) accumulate: bool,
    pub(super) with_router: bool,
}

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Gradients of w13, b13, w2, b2 and of the weights; rows of dx in `self.y`, or with expert parallelism back in the
    /// exchange.
    pub(super) fn routed_backward(
        &mut self,
        step: &Step<'_, D, T>,
        space: &mut Backward<D, T>,
        mut exchange: Option<&mut Exchange<D, T>>,
        saved: &mut Saved<D, T>,
        grads: &mut Grads<D, T>,
    ) -> Result<(), Error<D::Error>> {
        let Step { layer, x, dy, plan, accumulate, .. } = step;
        let (weights, dims) = (&layer.weights, plan.routed());
        let scores_first = layer.config.score_order == ScoreOrder::BeforeExperts;
        let (h_len, a_len) = (dims.rows * dims.up_width(), dims.rows * dims.hidden);
        let Saved { routing, arrived, h, .. } = saved;
        let ep = &mut self.groups.ep;
        if let (Some(exchange), Some(arrived)) = (&mut exchange, &mut *arrived) {
            let (_, _, way) = arrived.way(routing, plan);
            exchange.rows_out(&mut self.session, ep, dy.routed, &way, To::Received)?;
            if plan.recomputes() {
                exchange.rows_out(&mut self.session, ep, x.routed, &way, To::Again)?;
            }
        }
        // Rows of x and dout as the experts see them: this rank's tokens, or what has arrived.
        let (x, dy, ds) = match (exchange.as_deref_mut(), &*arrived) {
            (Some(exchange), Some(arrived)) => {
                let Exchange { received, again, ds, .. } = exchange;
                let Some(x) = arrived.x.as_ref().or(again.as_ref()) else {
                    return Err(Error::State("no buffer holds the rows of x"));
                };
                let len = dims.rows * dims.width;
                (arrived.side(first::<D, T>(x, len)?)?, first::<D, T>(received, len)?, ds)
            }
            _ => (routing.side(x.routed)?, dy.routed, &mut space.ds),
        };
        if plan.recomputes() {
            // The routing is the saved one: ids are never decided twice.
            let args = ExpertUpArgs {
                x: x.rows,
                index: Some(x.index),
                offsets: x.offsets,
                w13: layer.packed.0.up.weight(&weights.w13),
                b13: weights.b13.as_ref().map(whole::<D, T>),
                weights: scores_first.then_some(x.weights),
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
            dout: dy,
            index: Some(x.index),
            offsets: x.offsets,
            w2: layer.packed.0.down_bwd.weight(&weights.w2),
            b2: weights.b2.as_ref().map(whole::<D, T>),
            b13: weights.b13.as_ref().map(whole::<D, T>),
            weights: Some(x.weights),
            scores_first,
            h: first_mut::<D, T>(h, h_len)?,
            a: first_mut::<D, T>(&mut self.a, a_len)?,
            ds: Some(first_mut::<D, T::Acc>(ds, dims.slots())?),
        };
        self.session.run::<ExpertDownBwd<T>>(&dims, args)?;
        let args = ExpertWgradArgs {
            left: dy,
            right: first::<D, T>(&self.a, a_len)?,
            index: Some(x.index),
            offsets: x.offsets,
            right_weights: None,
            bias_weights: (!scores_first).then_some(x.weights),
            dw: whole_mut::<D, T::Acc>(&mut grads.weights.w2),
            dbias: grads.weights.b2.as_mut().map(whole_mut::<D, T::Acc>),
        };
        self.session.run::<ExpertWgrad<T>>(&Plan::wgrad_down(&dims, *accumulate), args)?;
        let args = ExpertWgradArgs {
            left: first::<D, T>(h, h_len)?,
            right: x.rows,
            index: Some(x.index),
            offsets: x.offsets,
            right_weights: scores_first.then_some(x.weights),
            bias_weights: None,
            dw: whole_mut::<D, T::Acc>(&mut grads.weights.w13),
            dbias: grads.weights.b13.as_mut().map(whole_mut::<D, T::Acc>),
        };
        self.session.run::<ExpertWgrad<T>>(&Plan::wgrad_up(&dims, *accumulate), args)?;
        let args = ExpertUpBwdArgs {
            dz: first::<D, T>(h, h_len)?,
            offsets: x.offsets,
            w13: layer.packed.0.up_bwd.weight(&weights.w13),
            weights: scores_first.then_some(x.weights),
            index: Some(x.index),
            out_index: x.out_index,
            dx: first_mut::<D, T>(&mut self.y, dims.rows * dims.width)?,
        };
        self.session.run::<ExpertUpBwd<T>>(&dims, args)?;
        match (exchange, arrived) {
            (Some(exchange), Some(arrived)) => {
                let (_, _, way) = arrived.way(routing, plan);
                exchange.rows_back(&mut self.session, ep, way.splits, &mut self.y, dims.width)?;
                let ds = first_mut::<D, T::Acc>(&mut space.ds, plan.slots)?;
                exchange.ds_back(&mut self.session, ep, &way, ds)
            }
            _ => Ok(()),
        }
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
        let (balance, top_k, sequences) = (&layer.config.balance, plan.config.top_k, plan.sequences);
        let stepwise =
            matches!(balance.loss, Some(BalanceLoss::Batch(_))) && !routing.batch.step_counts.is_empty();
        // Losses are added where a token is the rank's own; it may route others too, which then go by themselves.
        let (own, all) = (plan.share.own_routed(), 0..plan.tokens);
        let apart = own != all && (balance.loss.is_some() || balance.z_loss > 0.0);
        let pieces = if apart { [0..own.start, own.clone(), own.end..all.end] } else { [all, 0..0, 0..0] };
        let mut accumulate_load = *accumulate;
        for (nth, piece) in pieces.into_iter().enumerate() {
            if piece.is_empty() && (apart || nth > 0) {
                continue;
            }
            let with_losses = !apart || nth == 1;
            let aux = match balance.loss {
                Some(_) if with_losses => Some(Aux {
                    sequences: first::<D, u32>(&losses.sequences, sequences + 1)?,
                    counts: if stepwise {
                        first::<D, u32>(&losses.step_counts, experts)?
                    } else {
                        first::<D, u32>(&losses.counts, sequences * experts)?
                    },
                    factors: first::<D, T::Acc>(&losses.factors, sequences)?,
                }),
                _ => None,
            };
            let z = with_losses && balance.z_loss > 0.0;
            let slots = piece.start * top_k..piece.end * top_k;
            let logits = piece.start * experts..piece.end * experts;
            let args = RouteBwdArgs {
                logits: routing.logits()?.slice(logits.clone())?,
                ids: routing.ids()?.slice(slots.clone())?,
                dweights: whole::<D, T::Acc>(&space.ds).slice(slots.clone())?,
                row_of_slot: Some(routing.row_of_slot()?.slice(slots)?),
                aux,
                z_factor: z.then(|| whole::<D, T::Acc>(&losses.z_factor)),
                load: Some(whole_mut::<D, u32>(&mut grads.load)),
                dlogits: whole_mut::<D, T::Acc>(&mut space.dlogits).slice(logits)?,
            };
            self.session.run::<RouteBwd<T>>(&plan.route_bwd(piece.len(), accumulate_load), args)?;
            accumulate_load = true;
        }
        let args = GateBwdArgs {
            dlogits: first::<D, T::Acc>(&space.dlogits, plan.tokens * experts)?,
            x: x.routed,
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
        let (layer, plan) = (step.layer, Plan::empty(&step.plan.config));
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
        self.session.run::<RouteBwd<T>>(&plan.route_bwd(0, false), args)?;
        let args = GateBwdArgs {
            dlogits: first::<D, T::Acc>(&space.dlogits, 0)?,
            x: step.x.routed.slice(0..0)?,
            gate: layer.packed.0.gate.weight(&layer.weights.gate),
            stamp: layer.config.rule.jitter.map(|_| whole::<D, u32>(&saved.routing.stamp)),
            dx: first_mut::<D, T>(&mut self.a, 0)?,
            dgate: whole_mut::<D, T::Acc>(&mut grads.weights.gate),
            dbias: grads.weights.gate_bias.as_mut().map(whole_mut::<D, T::Acc>),
        };
        self.session.run::<GateBwd<T>>(&plan.gate_bwd(false), args)
    }
}
