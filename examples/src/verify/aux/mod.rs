//! The group `aux`: balancing losses and their gradients, the z-loss, and the expert bias.

mod balance;
mod bias;
mod hf;
mod split;
mod stats;
mod z_loss;

pub(crate) use stats::{Sizes, Tokens, value};

use super::check::Check;
use super::rig::Rig;
use anyhow::Result;
use moe_core::MoeDevice;

/// Compares one case. Which kind it is, its tensors and keys say.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let has = |key: &str| keys.get(key).is_some();
    if case.find("in.counts").is_some() {
        bias::check(rig, check)
    } else if case.find("in.topk_ids").is_none() && has("masked") {
        hf::check(rig, check)
    } else if case.find("in.topk_ids").is_none() {
        z_loss::check(rig, check)
    } else if has("dp") {
        split::data_parallel(rig, check)
    } else if has("cp") {
        split::context_parallel(rig, check)
    } else if has("microbatches") {
        split::micro_batches(rig, check)
    } else {
        balance::check(rig, check)
    }
}
