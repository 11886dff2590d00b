//! What follows the router in inference: sort, experts and their sum, one by one or as the one op for few tokens.

use super::edge::Tokens;
use super::shared_ops::shared_term;
use super::{Plan, Rows, Runner, Saved};
use crate::collective::Collective;
use crate::error::{Error, OpId, expect};
use crate::layer::MoeLayer;
use crate::ops::{Decode, DecodeArgs, DecodeRoom, ExpertDims, MoeDevice};
use crate::scalar::Scalar;
use crate::view::{first, first_mut, whole, whole_mut};

impl<T: Scalar, D: MoeDevice<T>, C: Collective<D>> Runner<D, T, C> {
    /// What follows the router in inference: the way that suits the device.
    pub(super) fn inference_ops(
        &mut self,
        layer: &MoeLayer<D, T>,
        tokens: Tokens<'_, D, T>,
        saved: &mut Saved<D, T>,
        y: &mut Rows<D, T>,
        plan: &Plan,
    ) -> Result<(), Error<D::Error>> {
        if plan.decodes::<T, D>(self.session.device()) {
            return self.decode_ops(layer, tokens, saved, y, plan);
        }
        self.sort_op(saved, plan)?;
        self.expert_ops(layer, tokens, saved, y, plan, false)
    }

    /// Sort, experts and their sum as one op.
    fn decode_ops(
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
        let args = DecodeArgs {
            x: tokens.routed,
            ids: first::<D, u32>(&routing.ids, rows)?,
            weights: first::<D, T::Acc>(&routing.weights, rows)?,
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
