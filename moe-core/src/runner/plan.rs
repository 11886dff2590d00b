//! Plan: the dimensions of every op for one layer and a number of tokens. Buffers and scratch are sized from the plan of
//! the most tokens; every call runs the plan of its own.

use super::share::{Room, Share, capacity};
use crate::config::{MemoryPolicy, MoeConfig, ScoreOrder};
use crate::device::Kernel;
use crate::ops::{
    self, AdamWDims, CombineDims, DecodeDims, ExpertDims, GateBwdDims, GatherDims, MergeDims, MoeDevice,
    PackUse, RouteBwdDims, RouteDims, RouteRule, RouteStatsDims, ScoreFunction, SortDims, SumSquaresDims,
    WgradDims,
};
use crate::scalar::Scalar;

/// Dimensions of a layer's ops.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) config: MoeConfig,
    /// which tokens
    pub(crate) share: Share,
    /// T: tokens that this rank routes
    pub(crate) tokens: usize,
    /// N = T * K
    pub(crate) slots: usize,
    /// rows of the experts' side: the slots, or with expert parallelism the receive buffer's
    pub(crate) rows: usize,
    /// S of the load-balancing loss
    pub(crate) sequences: usize,
}

impl Plan {
    /// The plan of a call, as far as it is known before rows have arrived.
    pub(crate) fn new(config: &MoeConfig, share: &Share, sequences: usize) -> Self {
        let tokens = share.routed.len();
        let slots = tokens.saturating_mul(config.top_k);
        Self { config: *config, share: share.clone(), tokens, slots, rows: slots, sequences }
    }

    /// The plan of no tokens.
    pub(crate) fn empty(config: &MoeConfig) -> Self {
        Self::new(config, &Share::default(), 0)
    }

    /// The plan of the most.
    pub(crate) fn of_room(config: &MoeConfig, room: &Room, sequences: usize) -> Self {
        let Room { total, routed, slots, rows } = *room;
        let share = Share { total, local: 0..total, own: 0..routed, routed: 0..routed };
        Self { config: *config, share, tokens: routed, slots, rows, sequences }
    }

    /// Whether rows travel to the owners of experts.
    pub(crate) fn travels(&self) -> bool {
        self.config.place.ep.size > 1
    }

    pub(crate) fn route(&self) -> RouteDims {
        let MoeConfig { width, experts, top_k, rule, .. } = self.config;
        RouteDims { tokens: self.tokens, width, experts, top_k, rule }
    }

    /// Of some of the routed tokens.
    pub(crate) fn stats(&self, tokens: usize) -> RouteStatsDims {
        let MoeConfig { experts, top_k, rule, .. } = self.config;
        let sequences = self.sequences;
        RouteStatsDims { tokens, experts, top_k, sequences, score: rule.score }
    }

    /// Of some of the routed tokens.
    pub(crate) fn route_bwd(&self, tokens: usize, accumulate: bool) -> RouteBwdDims {
        let MoeConfig { experts, top_k, rule, .. } = self.config;
        let sequences = self.sequences;
        RouteBwdDims { tokens, experts, top_k, sequences, rule, accumulate }
    }

    pub(crate) fn gate_bwd(&self, accumulate: bool) -> GateBwdDims {
        let MoeConfig { width, experts, rule, .. } = self.config;
        GateBwdDims { tokens: self.tokens, width, experts, jitter: rule.jitter, accumulate }
    }

    pub(crate) fn sort(&self) -> SortDims {
        SortDims {
            slots: self.slots,
            experts: self.config.experts,
            capacity: capacity(&self.config, self.slots),
        }
    }

    pub(crate) fn routed(&self) -> ExpertDims {
        let MoeConfig { width, top_k, activation, place, .. } = self.config;
        let part = self.config.part();
        let (experts, hidden, bias_shares) = (part.experts.len(), part.hidden.len(), place.etp.size);
        let (tokens, fan) = if self.travels() { (self.rows, 1) } else { (self.tokens, top_k) };
        ExpertDims { tokens, fan, rows: self.rows, experts, width, hidden, activation, bias_shares }
    }

    pub(crate) fn shared(&self) -> ExpertDims {
        let MoeConfig { width, activation, .. } = self.config;
        let (tokens, hidden) = (self.share.total, self.config.part().shared_hidden.len());
        ExpertDims { tokens, fan: 1, rows: tokens, experts: 1, width, hidden, activation, bias_shares: 1 }
    }

    /// The shared experts' gate is a router with one expert and the sigmoid of its logit.
    pub(crate) fn shared_gate(&self) -> Self {
        let gate = self.config.rule.gate;
        let rule = RouteRule { score: ScoreFunction::Sigmoid, gate, ..RouteRule::default() };
        let config = MoeConfig { experts: 1, top_k: 1, rule, ..self.config };
        let tokens = self.share.total;
        Self { config, tokens, slots: tokens, sequences: 0, ..self.clone() }
    }

    pub(crate) fn combine(&self) -> CombineDims {
        let MoeConfig { width, top_k, .. } = self.config;
        CombineDims { tokens: self.tokens, top_k, width, rows: self.slots }
    }

    /// Base terms alone: no token has a row.
    pub(crate) fn combine_terms(&self, tokens: usize) -> CombineDims {
        CombineDims { tokens, top_k: 1, width: self.config.width, rows: 0 }
    }

    /// Values per row, put back at their slots; 0 where a slot has none.
    pub(crate) fn to_slots(&self) -> CombineDims {
        CombineDims { tokens: self.slots, top_k: 1, width: 1, rows: self.slots }
    }

    /// Rows of tokens in the order of their destinations, which are `pitch` apart.
    pub(crate) fn leaving(&self, pitch: usize) -> GatherDims {
        let MoeConfig { width, top_k, place, .. } = self.config;
        GatherDims { sources: self.tokens, fan: top_k, rows: self.slots, width, groups: place.ep.size, pitch }
    }

    /// Values of slots in that order.
    pub(crate) fn leaving_values(&self, pitch: usize) -> GatherDims {
        GatherDims { sources: self.slots, fan: 1, width: 1, ..self.leaving(pitch) }
    }

    pub(crate) fn merge(&self, pitch: usize) -> MergeDims {
        let ranks = self.config.place.ep.size;
        MergeDims { ranks, experts: self.config.part().experts.len(), pitch, rows: self.rows }
    }

    pub(crate) fn decode(&self) -> DecodeDims {
        let scores_first = self.config.score_order == ScoreOrder::BeforeExperts;
        let rule = self.config.rule;
        DecodeDims { experts: ExpertDims { rows: self.slots, ..self.routed() }, rule, scores_first }
    }

    /// Whether inference takes [`ops::Decode`], which knows no capacity and no other ranks, in place of its parts.
    pub(crate) fn decodes<T: Scalar, D: MoeDevice<T>>(&self, device: &D) -> bool {
        let place = &self.config.place;
        let alone = place.ep.size == 1 && place.tp.size == 1;
        alone && self.config.capacity.is_none() && device.decodes::<T>(&self.decode())
    }

    /// Gradient of the down-projection of `dims`.
    pub(crate) fn wgrad_down(dims: &ExpertDims, accumulate: bool) -> WgradDims {
        let ExpertDims { tokens, fan, rows, experts, width, hidden, .. } = *dims;
        let (left, right) = (width, hidden);
        let (gather_left, gather_right) = (true, false);
        WgradDims { tokens, fan, rows, experts, left, right, gather_left, gather_right, accumulate }
    }

    /// Gradient of the up-projection of `dims`.
    pub(crate) fn wgrad_up(dims: &ExpertDims, accumulate: bool) -> WgradDims {
        let ExpertDims { tokens, fan, rows, experts, width, .. } = *dims;
        let (left, right) = (dims.up_width(), width);
        let (gather_left, gather_right) = (false, true);
        WgradDims { tokens, fan, rows, experts, left, right, gather_left, gather_right, accumulate }
    }

    /// Whether backward computes h again.
    pub(crate) fn recomputes(&self) -> bool {
        self.config.memory == MemoryPolicy::Recompute
    }

    /// Scratch bytes for the ops of inference.
    pub(crate) fn scratch_forward<T: Scalar, D: MoeDevice<T>>(&self, device: &D) -> usize {
        let gate = self.shared_gate();
        let mut most = scratch::<ops::Route<T>, D>(device, &self.route())
            .max(scratch::<ops::Route<T>, D>(device, &gate.route()))
            .max(scratch::<ops::Sort<T>, D>(device, &self.sort()))
            .max(scratch::<ops::Combine<T>, D>(device, &self.combine()))
            .max(scratch::<ops::Combine<T>, D>(device, &self.combine_terms(self.share.total)))
            .max(scratch::<ops::Decode<T>, D>(device, &self.decode()));
        if self.travels() {
            // The longest pitch makes the most rows: as many as there is room for.
            let pitch = self.rows / self.config.place.ep.size;
            for pitch in [0, pitch] {
                most = most
                    .max(scratch::<ops::Gather<T>, D>(device, &self.leaving(pitch)))
                    .max(scratch::<ops::Gather<T::Acc>, D>(device, &self.leaving_values(pitch)))
                    .max(scratch::<ops::Merge, D>(device, &self.merge(pitch)));
            }
            most = most.max(scratch::<ops::Combine<T::Acc>, D>(device, &self.to_slots()));
        }
        for dims in [self.routed(), self.shared()] {
            most = most
                .max(scratch::<ops::ExpertUp<T>, D>(device, &dims))
                .max(scratch::<ops::ExpertDown<T>, D>(device, &dims));
            for use_ in [PackUse::Up, PackUse::Down, PackUse::UpBwd, PackUse::DownBwd] {
                most = most.max(scratch::<ops::PackWeights<T>, D>(device, &dims.pack(use_)));
            }
        }
        for dims in [self.route().pack(), gate.route().pack()] {
            most = most.max(scratch::<ops::PackWeights<T>, D>(device, &dims));
        }
        most
    }

    /// Scratch bytes for every op of a training step.
    pub(crate) fn scratch_train<T: Scalar, D: MoeDevice<T>>(&self, device: &D) -> usize {
        let gate = self.shared_gate();
        let experts = self.config.experts;
        let mut most = self.scratch_forward::<T, D>(device);
        most = most.max(scratch::<ops::RouteStats<T>, D>(device, &self.stats(self.tokens)));
        most = most.max(scratch::<ops::BiasUpdate<T>, D>(device, &ops::BiasUpdateDims { experts }));
        for plan in [self, &gate] {
            most = most.max(scratch::<ops::RouteBwd<T>, D>(device, &plan.route_bwd(plan.tokens, true)));
            most = most.max(scratch::<ops::GateBwd<T>, D>(device, &plan.gate_bwd(true)));
        }
        for dims in [self.routed(), self.shared()] {
            most = most
                .max(scratch::<ops::ExpertDownBwd<T>, D>(device, &dims))
                .max(scratch::<ops::ExpertUpBwd<T>, D>(device, &dims))
                .max(scratch::<ops::ExpertWgrad<T>, D>(device, &Self::wgrad_down(&dims, true)))
                .max(scratch::<ops::ExpertWgrad<T>, D>(device, &Self::wgrad_up(&dims, true)));
        }
        for spec in self.config.tensors().into_iter().flatten() {
            let len = spec.len();
            most = most.max(scratch::<ops::AdamW<T>, D>(device, &AdamWDims { len })).max(scratch::<
                ops::SumSquares<T>,
                D,
            >(
                device,
                &SumSquaresDims { len, accumulate: true },
            ));
        }
        most
    }
}

fn scratch<O: crate::device::Op, D: Kernel<O>>(device: &D, dims: &O::Dims) -> usize {
    Kernel::<O>::scratch(device, dims)
}
