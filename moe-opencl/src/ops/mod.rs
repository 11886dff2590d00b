//! The ops, one file each, named as in `moe-core`.

mod adamw;
mod bias_update;
mod combine;
mod decode;
mod expert_down;
mod expert_down_bwd;
mod expert_up;
mod expert_up_bwd;
mod expert_wgrad;
mod gate_bwd;
mod gather;
mod merge;
mod pack_weights;
mod products;
mod route;
mod route_bwd;
mod route_stats;
mod scores;
mod sort;
mod sum_squares;

use crate::platform::Facts;
use crate::program::Source;
use half::{bf16, f16};
use moe_core::Scalar;

/// All programs.
pub(crate) static SOURCES: &[&Source] = &[
    &adamw::SOURCE,
    &bias_update::SOURCE,
    &combine::SOURCE,
    &expert_down::SOURCE,
    &expert_down_bwd::SOURCE,
    &expert_up::SOURCE,
    &expert_up_bwd::SOURCE,
    &expert_wgrad::SOURCE,
    &gate_bwd::SOURCE,
    &gather::SOURCE,
    &merge::SOURCE,
    &route::SOURCE,
    &route::CHOOSE,
    &route_bwd::SOURCE,
    &route_stats::SOURCE,
    &scores::SOURCE,
    &sort::SOURCE,
    &sum_squares::SOURCE,
];

/// Storage types that have kernels.
pub trait Float: Scalar<Acc = f32> {}
impl Float for f32 {}
impl Float for bf16 {}
impl Float for f16 {}

/// Work items of a group: a power of two, which the programs know as `THREADS`.
pub(crate) fn threads(facts: &Facts) -> usize {
    let most = facts.group.clamp(1, 256);
    if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 }
}

/// Groups and work items for `columns`, four of them each, of `rows`; narrow rows share a group.
pub(crate) fn by_row(facts: &Facts, rows: usize, columns: usize) -> crate::call::Grid {
    let (items, threads) = (columns.div_ceil(4), threads(facts));
    let across = items.next_power_of_two().min(threads);
    let down = threads / across;
    crate::call::Grid::of([items.div_ceil(across), rows.div_ceil(down)], [across, down])
}
