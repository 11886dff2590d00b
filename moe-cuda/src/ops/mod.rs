//! The ops, one file each, named as in `moe-core`.

mod adamw;
mod bias_update;
mod combine;
pub(crate) mod decode;
mod expert_down;
mod expert_down_bwd;
mod expert_up;
mod expert_up_bwd;
mod expert_wgrad;
mod gate_bwd;
mod gather;
mod hopper;
mod merge;
mod pack_weights;
mod products;
mod route;
mod route_bwd;
mod route_stats;
mod sort;
mod sum_squares;

use crate::image::Image;
use half::{bf16, f16};
use moe_core::Scalar;

/// All kernels.
pub(crate) static IMAGES: &[&Image] = &[
    &adamw::IMAGE,
    &bias_update::IMAGE,
    &combine::IMAGE,
    &decode::IMAGE,
    &expert_down::IMAGE,
    &expert_down_bwd::IMAGE,
    &expert_up::IMAGE,
    &expert_up_bwd::IMAGE,
    &expert_wgrad::IMAGE,
    &gate_bwd::IMAGE,
    &gather::IMAGE,
    &hopper::IMAGES[0],
    &hopper::IMAGES[1],
    &hopper::IMAGES[2],
    &hopper::IMAGES[3],
    &hopper::IMAGES[4],
    &merge::IMAGE,
    &route::IMAGE,
    &route::FEW_IMAGE,
    &route::NATIVE_IMAGE,
    &route_bwd::IMAGE,
    &route_stats::IMAGE,
    &sort::IMAGE,
    &sum_squares::IMAGE,
];

/// Storage types that have kernels.
pub trait Float: Scalar<Acc = f32> {}
impl Float for f32 {}
impl Float for bf16 {}
impl Float for f16 {}
