//! The ops of the layer: arguments, shape checks and reference math, one file each.
//!
//! Shapes are row-major. T tokens, D width, F hidden width, E experts, K experts per token, N = T*K slots
//! (slot = token*K + k), R rows on this rank's experts, S sequences. One index convention serves all:
//! `index[r]` names a slot; its source row is `index[r] / fan`, its weight `weights[index[r]]`.

mod activation;
mod adamw;
mod bias_update;
mod combine;
mod decode;
mod expert_down;
mod expert_down_bwd;
mod expert_up;
mod expert_up_bwd;
mod expert_wgrad;
mod experts;
mod gate_bwd;
mod gather;
mod jitter;
mod merge;
mod pack_weights;
mod route;
mod route_bwd;
mod route_stats;
mod sort;
mod sum_squares;

pub use activation::Activation;
pub use adamw::{ADAMW_SETTINGS, AdamW, AdamWArgs, AdamWDims, AdamWSettings};
pub use bias_update::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims};
pub use combine::{Base, Combine, CombineArgs, CombineDims, NO_ROW};
pub use decode::{Decode, DecodeArgs, DecodeDims, DecodeRoom, apart, apart_scratch};
pub use expert_down::{ExpertDown, ExpertDownArgs};
pub use expert_down_bwd::{ExpertDownBwd, ExpertDownBwdArgs};
pub use expert_up::{ExpertUp, ExpertUpArgs};
pub use expert_up_bwd::{ExpertUpBwd, ExpertUpBwdArgs};
pub use expert_wgrad::{ExpertWgrad, ExpertWgradArgs, WgradDims};
pub use experts::{ExpertDims, Weight};
pub use gate_bwd::{GateBwd, GateBwdArgs, GateBwdDims};
pub use gather::{Gather, GatherArgs, GatherDims};
pub use jitter::{Jitter, STAMP, Stamp};
pub use merge::{Merge, MergeArgs, MergeDims};
pub use pack_weights::{PackDims, PackUse, PackWeights, PackWeightsArgs};
pub use route::{GateMath, Route, RouteArgs, RouteDims, RouteRule, ScoreFunction, Selection};
pub use route_bwd::{Aux, RouteBwd, RouteBwdArgs, RouteBwdDims};
pub use route_stats::{RouteStats, RouteStatsArgs, RouteStatsDims};
pub use sort::{Sort, SortArgs, SortDims};
pub use sum_squares::{SumSquares, SumSquaresArgs, SumSquaresDims};

pub(crate) use experts::product_row;
pub(crate) use jitter::jittered;
pub(crate) use route::{scores, sum_over_experts};

/// Tokens whose terms are added in order before chunk is added to chunk, in order again.
pub const CHUNK: usize = 1024;

/// The one list of ops. `for_each_op!(m)` calls `m!` with every op type, written in terms of a storage
/// type named `T`. The bound [`MoeDevice`] and the conformance suite are made from it, so that no op can be
/// forgotten in either.
#[macro_export]
macro_rules! for_each_op {
    ($m:ident) => {
        $m! {
            $crate::ops::Route<T>,
            $crate::ops::RouteStats<T>,
            $crate::ops::RouteBwd<T>,
            $crate::ops::GateBwd<T>,
            $crate::ops::Sort<T>,
            $crate::ops::Merge,
            $crate::ops::Gather<T>,
            $crate::ops::ExpertUp<T>,
            $crate::ops::ExpertDown<T>,
            $crate::ops::ExpertDownBwd<T>,
            $crate::ops::ExpertUpBwd<T>,
            $crate::ops::ExpertWgrad<T>,
            $crate::ops::Combine<T>,
            $crate::ops::Decode<T>,
            $crate::ops::PackWeights<T>,
            $crate::ops::AdamW<T>,
            $crate::ops::SumSquares<T>,
            $crate::ops::BiasUpdate<T>
        }
    };
}

macro_rules! device_bound {
    ($($op:ty),*) => {
        /// A device that runs every op of the layer for storage type `T`, and what moves rows for its accumulation type
        /// too: weights and their gradients travel with rows.
        pub trait MoeDevice<T: $crate::Scalar>:
            $($crate::Kernel<$op> +)* $crate::Kernel<Gather<T::Acc>> + $crate::Kernel<Combine<T::Acc>> {}
        impl<T: $crate::Scalar, D> MoeDevice<T> for D where
            D: $($crate::Kernel<$op> +)* $crate::Kernel<Gather<T::Acc>> + $crate::Kernel<Combine<T::Acc>> {}
    };
}
for_each_op!(device_bound);
