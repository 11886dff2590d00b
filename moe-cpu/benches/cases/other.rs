//! Ops that a step on one rank does without, or that follow it: packing, exchange between ranks, balancing, few tokens.

use super::{Case, Outcome, Shape, go};
use moe_core::ops::*;
use moe_core::{OpId, View, ViewMut};
use moe_cpu::Float;

impl<T: Float> Case<T> {
    /// Rows of two ranks, where the experts can be halved.
    pub(super) fn merge(shape: Shape) -> MergeDims {
        let ranks = if shape.experts.is_multiple_of(2) { 2 } else { 1 };
        MergeDims { ranks, experts: shape.experts / ranks, pitch: 0, rows: shape.slots() }
    }

    pub(super) fn decode(shape: Shape) -> DecodeDims {
        DecodeDims { experts: Self::product(shape), rule: RouteRule::default(), scores_first: false }
    }

    pub(super) fn launch_other(&mut self, op: &str) -> Outcome<OpId> {
        let Shape { tokens, width, experts, top_k, .. } = self.shape;
        let (shape, slots) = (self.shape, self.shape.slots());
        let Self { cpu, packed, scratch, .. } = self;
        let (mut count, mut dropped) = ([0_u32], [0_u32]);
        match op {
            "pack_weights" => {
                let args =
                    PackWeightsArgs { plain: View::of(&self.weights), packed: ViewMut::of(&mut packed.up) };
                go::<PackWeights<T>>(cpu, &Self::product(shape).pack(PackUse::Up), args, scratch)
            }
            "gather" => {
                let dims =
                    GatherDims { sources: tokens, fan: top_k, rows: slots, width, groups: experts, pitch: 0 };
                let args = GatherArgs {
                    source: View::of(&self.x),
                    index: View::of(&self.slot_of_row),
                    offsets: View::of(&self.offsets),
                    out: ViewMut::of(&mut self.y[..slots * width]),
                };
                go::<Gather<T>>(cpu, &dims, args, scratch)
            }
            "merge" => {
                let (dims, [offsets, index]) = (Self::merge(shape), &mut self.merged);
                let args = MergeArgs {
                    counts: View::of(&self.counts),
                    offsets: ViewMut::of(&mut offsets[..dims.experts + 1]),
                    index: ViewMut::of(index),
                    overflow: ViewMut::of(&mut count),
                };
                go::<Merge>(cpu, &dims, args, scratch)
            }
            "bias_update" => {
                let rate = [1e-3];
                let args = BiasUpdateArgs {
                    counts: View::of(&self.counts),
                    rate: View::of(&rate),
                    bias: ViewMut::of(&mut self.bias),
                };
                go::<BiasUpdate<T>>(cpu, &BiasUpdateDims { experts }, args, scratch)
            }
            "decode" => {
                let route = RouteArgs {
                    x: View::of(&self.x),
                    gate: Weight::Packed(View::of(&packed.gate)),
                    gate_bias: None,
                    selection_bias: None,
                    forced_ids: None,
                    stamp: None,
                    logits: ViewMut::of(&mut self.logits),
                    ids: ViewMut::of(&mut self.ids),
                    weights: ViewMut::of(&mut self.scores),
                    non_finite: ViewMut::of(&mut count),
                };
                let room = DecodeRoom {
                    offsets: ViewMut::of(&mut self.offsets),
                    row_of_slot: ViewMut::of(&mut self.row_of_slot),
                    slot_of_row: ViewMut::of(&mut self.slot_of_row),
                    a: ViewMut::of(&mut self.a),
                    y: ViewMut::of(&mut self.y[..slots * width]),
                };
                let args = DecodeArgs {
                    route,
                    w13: Weight::Packed(View::of(&packed.up)),
                    b13: None,
                    w2: Weight::Packed(View::of(&packed.down)),
                    b2: None,
                    base: [None, None, None],
                    counts: ViewMut::of(&mut self.counts),
                    dropped: ViewMut::of(&mut dropped),
                    out: ViewMut::of(&mut self.out),
                    room,
                };
                go::<Decode<T>>(cpu, &Self::decode(shape), args, scratch)
            }
            other => panic!("no op is called {other}"),
        }
    }
}
