//! Dimensions of the ops of one layer.

use crate::bench::{Options, Shape};
use anyhow::Result;
use moe_core::ops::*;
use moe_core::{Kernel, MoeDevice, Scalar};

/// Dimensions of every op, as a runner has them.
pub(super) struct Plan {
    pub(super) route: RouteDims,
    pub(super) stats: RouteStatsDims,
    pub(super) sort: SortDims,
    pub(super) product: ExpertDims,
    pub(super) combine: CombineDims,
    /// the rows of all experts, as if all went to one rank
    pub(super) gather: GatherDims,
    /// as many ranks as can share the experts, up to eight: what one of them makes of the others' counts
    pub(super) merge: MergeDims,
    pub(super) wgrad_down: WgradDims,
    pub(super) wgrad_up: WgradDims,
    pub(super) route_bwd: RouteBwdDims,
    pub(super) gate_bwd: GateBwdDims,
    /// over w13
    pub(super) adamw: AdamWDims,
    pub(super) squares: SumSquaresDims,
    pub(super) bias: BiasUpdateDims,
}

impl Plan {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let Shape { tokens, width, hidden, experts, top_k } = options.shape;
        let config = options.config()?;
        let (slots, accumulate) = (tokens * top_k, options.accumulate);
        let (rule, activation, sequences) = (config.rule, config.activation, 1);
        let (fan, rows) = (top_k, slots);
        let product = ExpertDims { tokens, fan, rows, experts, width, hidden, activation, bias_shares: 1 };
        let up = product.up_width();
        let wgrad = |left, right, gather_left: bool| {
            let gather_right = !gather_left;
            WgradDims { tokens, fan, rows, experts, left, right, gather_left, gather_right, accumulate }
        };
        let len = experts * up * width;
        let ranks = (1..=8).rev().find(|ranks| experts.is_multiple_of(*ranks)).unwrap_or(1);
        Ok(Self {
            route: RouteDims { tokens, width, experts, top_k, rule },
            stats: RouteStatsDims { tokens, experts, top_k, sequences, score: rule.score },
            sort: SortDims { slots, experts, capacity: None },
            product,
            combine: CombineDims { tokens, top_k, width, rows },
            gather: GatherDims { sources: tokens, fan, rows, width, groups: experts, pitch: 0 },
            merge: MergeDims { ranks, experts: experts / ranks, pitch: 0, rows },
            bias: BiasUpdateDims { experts },
            wgrad_down: wgrad(width, hidden, true),
            wgrad_up: wgrad(up, width, false),
            route_bwd: RouteBwdDims { tokens, experts, top_k, sequences, rule, accumulate },
            gate_bwd: GateBwdDims { tokens, width, experts, jitter: None, accumulate },
            adamw: AdamWDims { len },
            squares: SumSquaresDims { len, accumulate: false },
        })
    }

    /// Bytes of scratch memory for the op that wants most.
    pub(super) fn scratch<D: MoeDevice<T>, T: Scalar>(&self, device: &D) -> usize {
        let all = [
            Kernel::<Route<T>>::scratch(device, &self.route),
            Kernel::<RouteStats<T>>::scratch(device, &self.stats),
            Kernel::<Sort<T>>::scratch(device, &self.sort),
            Kernel::<ExpertUp<T>>::scratch(device, &self.product),
            Kernel::<ExpertDown<T>>::scratch(device, &self.product),
            Kernel::<Combine<T>>::scratch(device, &self.combine),
            Kernel::<ExpertDownBwd<T>>::scratch(device, &self.product),
            Kernel::<ExpertUpBwd<T>>::scratch(device, &self.product),
            Kernel::<ExpertWgrad<T>>::scratch(device, &self.wgrad_down),
            Kernel::<ExpertWgrad<T>>::scratch(device, &self.wgrad_up),
            Kernel::<RouteBwd<T>>::scratch(device, &self.route_bwd),
            Kernel::<GateBwd<T>>::scratch(device, &self.gate_bwd),
            Kernel::<AdamW<T>>::scratch(device, &self.adamw),
            Kernel::<SumSquares<T>>::scratch(device, &self.squares),
            Kernel::<Gather<T>>::scratch(device, &self.gather),
            Kernel::<Merge>::scratch(device, &self.merge),
            Kernel::<BiasUpdate<T>>::scratch(device, &self.bias),
        ];
        all.into_iter().max().unwrap_or(0)
    }
}
