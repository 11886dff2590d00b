//! The ops, one file each, named as in `moe-core`.

mod combine;

use crate::image::Image;
use half::{bf16, f16};
use moe_core::Scalar;

/// All kernels.
pub(crate) static IMAGES: &[&Image] = &[&combine::IMAGE];

/// Storage types that have kernels.
pub trait Float: Scalar<Acc = f32> {}
impl Float for f32 {}
impl Float for bf16 {}
impl Float for f16 {}
