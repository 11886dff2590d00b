//! Plan: the dimensions of every op for one layer and a number of tokens. Buffers and scratch are sized from the plan of
//! the most tokens; every call runs the plan of its own.

use crate::config::{MemoryPolicy, MoeConfig};
use crate::device::Kernel;
use crate::ops::{
    self, AdamWDims, CombineDims, ExpertDims, GateBwdDims, MoeDevice, PackUse, RouteBwdDims, RouteDims,
    RouteRule, RouteStatsDims, ScoreFunction, SortDims, SumSquaresDims, WgradDims,
};
use crate::scalar::Scalar;

/// Dimensions of a layer's ops.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) config: MoeConfig,
    /// T
    pub(crate) tokens: usize,
    /// N = T * K
    pub(crate) slots: usize,
    /// S of the load-balancing loss
    pub(crate) sequences: usize,
}

impl Plan {
    pub(crate) fn new(config: &MoeConfig, tokens: usize, sequences: usize) -> Self {
        Self { config: *config, tokens, slots: tokens.saturating_mul(config.top_k), sequences }
    }

    /// Rows that an expert may take; `None` without a bound.
    fn capacity(&self) -> Option<usize> {
        let capacity = self.config.capacity?;
        let even = self.slots as f64 / self.config.experts as f64;
        Some(libm::ceil(f64::from(capacity.factor) * even) as usize)
    }

    pub(crate) fn route(&self) -> RouteDims {
        let MoeConfig { width, experts, top_k, rule, .. } = self.config;
        RouteDims { tokens: self.tokens, width, experts, top_k, rule }
    }

    pub(crate) fn stats(&self) -> RouteStatsDims {
        let MoeConfig { experts, top_k, rule, .. } = self.config;
        let (tokens, sequences) = (self.tokens, self.sequences);
        RouteStatsDims { tokens, experts, top_k, sequences, score: rule.score }
    }

    pub(crate) fn route_bwd(&self, accumulate: bool) -> RouteBwdDims {
        let MoeConfig { experts, top_k, rule, .. } = self.config;
        let (tokens, sequences) = (self.tokens, self.sequences);
        RouteBwdDims { tokens, experts, top_k, sequences, rule, accumulate }
    }

    pub(crate) fn gate_bwd(&self, accumulate: bool) -> GateBwdDims {
        let MoeConfig { width, experts, rule, .. } = self.config;
        GateBwdDims { tokens: self.tokens, width, experts, jitter: rule.jitter, accumulate }
    }

    pub(crate) fn sort(&self) -> SortDims {
        SortDims { slots: self.slots, experts: self.config.experts, capacity: self.capacity() }
    }

    pub(crate) fn routed(&self) -> ExpertDims {
        let MoeConfig { width, hidden, experts, top_k, activation, .. } = self.config;
        let (tokens, rows) = (self.tokens, self.slots);
        ExpertDims { tokens, fan: top_k, rows, experts, width, hidden, activation, bias_shares: 1 }
    }

    pub(crate) fn shared(&self) -> ExpertDims {
        let MoeConfig { width, activation, shared, .. } = self.config;
        let (tokens, hidden) = (self.tokens, shared.map_or(0, |shared| shared.hidden));
        ExpertDims { tokens, fan: 1, rows: tokens, experts: 1, width, hidden, activation, bias_shares: 1 }
    }

    /// The shared experts' gate is a router with one expert and the sigmoid of its logit.
    pub(crate) fn shared_gate(&self) -> Self {
        let gate = self.config.rule.gate;
        let rule = RouteRule { score: ScoreFunction::Sigmoid, gate, ..RouteRule::default() };
        let config = MoeConfig { experts: 1, top_k: 1, rule, ..self.config };
        Self { config, slots: self.tokens, sequences: 0, ..*self }
    }

    pub(crate) fn combine(&self) -> CombineDims {
        let MoeConfig { width, top_k, .. } = self.config;
        CombineDims { tokens: self.tokens, top_k, width, rows: self.slots }
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
            .max(scratch::<ops::Combine<T>, D>(device, &self.combine()));
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
        most = most.max(scratch::<ops::RouteStats<T>, D>(device, &self.stats()));
        most = most.max(scratch::<ops::BiasUpdate<T>, D>(device, &ops::BiasUpdateDims { experts }));
        for plan in [self, &gate] {
            most = most.max(scratch::<ops::RouteBwd<T>, D>(device, &plan.route_bwd(true)));
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
