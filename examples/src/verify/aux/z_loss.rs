//! `z_loss_*`: `coeff * mean over tokens of logsumexp^2`, whole and in micro-batches of consecutive tokens.

use super::stats::{Sizes, Tokens};
use crate::verify::check::Check;
use crate::verify::gradient::Losses;
use crate::verify::rig::Rig;
use anyhow::{Result, ensure};
use moe_core::MoeDevice;
use moe_core::ops::ScoreFunction;

/// Compares one case. The library returns sums of squares: a single token's logsumexp is known up to its sign.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let [count, experts] = case.dims("in.logits")?;
    keys.agrees("T", count)?;
    keys.agrees("num_experts", experts)?;
    keys.required("coeff")?;
    let coeff = keys.number("coeff", 0.0)?;
    let micro = keys.size_if_any("microbatches")?.unwrap_or(1);
    keys.choice("reduction", &[("mean over tokens", ())])?;
    keys.finish()?;
    let divides = micro > 0 && count > 0 && count.is_multiple_of(micro);
    ensure!(divides, "{count} tokens cannot be split into {micro} micro-batches");

    let sizes =
        Sizes { sequences: 1, length: count, experts, top_k: 1, coeff, score: ScoreFunction::Softmax };
    // The z-loss does not look at ids.
    let tokens = Tokens { sizes, logits: case.floats("in.logits", &[count, experts])?, ids: vec![0; count] };
    let factor = (coeff / count as f64) as f32;
    let sums_of = |step: usize| -> Result<Vec<f32>> {
        let sum = |first: usize| Ok(tokens.part(0..1, first..first + step).stats(rig, &[0])?.z_sum);
        (0..count).step_by(step).map(sum).collect()
    };
    let scaled = |sums: Vec<f32>| -> Vec<f32> { sums.into_iter().map(|sum| factor * sum).collect() };
    check.close("out.loss", &scaled(sums_of(count)?))?;
    check.close_if_any("out.micro", &scaled(sums_of(count / micro)?))?;
    if let Some(wanted) = case.find("out.lse") {
        let signs = wanted.floats()?;
        let signed = |(sum, sign): (f32, &f32)| sum.sqrt().copysign(*sign);
        let lse: Vec<f32> = sums_of(1)?.into_iter().zip(&signs).map(signed).collect();
        check.close("out.lse", &lse)?;
    }
    let losses = Losses { sequences: &[0], counts: &[], factors: &[], z_factor: Some(factor) };
    check.close("grad.logits", &tokens.gradient(rig, &losses, None)?)?;
    Ok(())
}
