//! Inference as the one op for few tokens.

use super::edge::Tokens;
use super::shared_ops::shared_term;
use super::{Plan, Rows, Runner, Saved};
use crate::collective::Collective;
use crate::error::{Error, OpId, expect};
use crate::layer::MoeLayer;
use crate::ops::{Decode, DecodeArgs, DecodeRoom, ExpertDims, MoeDevice, RouteArgs};
use crate::scalar::Scalar;
use crate::view::{first_mut, whole, whole_mut};

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// Router, sort, experts and their sum. The shared experts come first: their output is added at the end.
    pub(super) fn decode_op(
        &mut self,
        layer: &MoeLayer<D, T>,
        tokens: Tokens<'_, D, T>,
        saved: &mut Saved<D, T>,
        y: &mut Rows<D, T>,
        plan: &Plan,
    ) -> Result<(), Error<D::Error>> {
        let dims = plan.decode();
        let ExpertDims { rows, width, hidden, experts, .. } = dims.experts;
        expect(OpId("forward"), "y", &[plan.tokens, width], y.view().len())?;
        self.shared_forward(layer, tokens.all, saved, plan, false)?;
        let Saved { routing, shared_gate, .. } = saved;
        let route = RouteArgs {
            x: tokens.routed,
            gate: layer.packed.0.gate.weight(&layer.weights.gate),
            gate_bias: layer.weights.gate_bias.as_ref().map(whole::<D, T>),
            selection_bias: layer.selection_bias.as_ref().map(whole::<D, T::Acc>),
            forced_ids: None,
            stamp: dims.rule.stamped().then(|| whole::<D, u32>(&routing.stamp)),
            logits: first_mut::<D, T::Acc>(&mut routing.logits, plan.tokens * experts)?,
            ids: first_mut::<D, u32>(&mut routing.ids, rows)?,
            weights: first_mut::<D, T::Acc>(&mut routing.weights, rows)?,
            non_finite: whole_mut::<D, u32>(&mut routing.non_finite),
        };
        let args = DecodeArgs {
            route,
            w13: layer.packed.0.up.weight(&layer.weights.w13),
            b13: layer.weights.b13.as_ref().map(whole::<D, T>),
            w2: layer.packed.0.down.weight(&layer.weights.w2),
            b2: layer.weights.b2.as_ref().map(whole::<D, T>),
            base: [shared_term(&self.shared, shared_gate, plan)?, None, None],
            counts: first_mut::<D, u32>(&mut routing.counts, experts)?,
            dropped: whole_mut::<D, u32>(&mut routing.dropped),
            out: y.view_mut(),
            room: DecodeRoom {
                offsets: first_mut::<D, u32>(&mut routing.offsets, experts + 1)?,
                row_of_slot: first_mut::<D, u32>(&mut routing.row_of_slot, rows)?,
                slot_of_row: first_mut::<D, u32>(&mut routing.slot_of_row, rows)?,
                a: first_mut::<D, T>(&mut self.a, rows * hidden)?,
                y: first_mut::<D, T>(&mut self.y, rows * width)?,
            },
        };
        self.session.run::<Decode<T>>(&dims, args)
    }
}
