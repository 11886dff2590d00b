//! `load_balance_*`: sequence-wise and batch-wise loss with f, P and gradients.

use super::stats::{Sizes, Tokens, value};
use crate::verify::check::Check;
use crate::verify::gradient::Losses;
use crate::verify::rig::Rig;
use crate::verify::routing::Router;
use anyhow::Result;
use moe_core::MoeDevice;
use moe_core::ops::RouteRule;

/// Compares one case.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let sizes = Sizes::of(case, &keys)?;
    keys.finish()?;
    let tokens = sizes.tokens(case)?;
    let main = case.floats("in.R", &[sizes.sequences, sizes.length, sizes.top_k])?;
    let rule = RouteRule { score: sizes.score, ..RouteRule::default() };
    let router = Router::<f32>::identity(tokens.len(), sizes.experts, sizes.top_k, rule)?;
    check.close_if_any("out.scores", &router.scores(rig, &tokens.logits)?)?;
    compare(rig, check, &tokens, "seq", sizes.length, sizes.sequences, &main)?;
    compare(rig, check, &tokens, "batch", tokens.len(), 1, &main)
}

/// Compares one of the two losses, over `parts` parts of `length` tokens.
fn compare<D: MoeDevice<f32>>(
    rig: &Rig<D>,
    check: &mut Check<'_>,
    tokens: &Tokens,
    kind: &str,
    length: usize,
    parts: usize,
    main: &[f32],
) -> Result<()> {
    let sizes = tokens.sizes;
    let bounds = tokens.bounds(length)?;
    let stats = tokens.stats(rig, &bounds)?;
    let share = sizes.experts as f64 / (sizes.top_k * length) as f64;
    let f: Vec<f32> = stats.counts.iter().map(|count| (share * f64::from(*count)) as f32).collect();
    let p: Vec<f32> = stats.prob_sums.iter().map(|sum| sum / length as f32).collect();
    let products: Vec<f32> = f
        .chunks(sizes.experts)
        .zip(p.chunks(sizes.experts))
        .map(|(f, p)| f.iter().zip(p).map(|(f, p)| f * p).sum())
        .collect();
    let factor = sizes.per_batch(length) / parts as f32;
    let loss = value(factor, &stats.counts, &stats.prob_sums);
    check.close(&format!("out.{kind}.f"), &f)?;
    check.close(&format!("out.{kind}.p"), &p)?;
    check.close(&format!("out.{kind}.loss"), &[loss])?;
    check.close_if_any(&format!("out.{kind}.per_sequence"), &products)?;
    let losses =
        Losses { sequences: &bounds, counts: &stats.counts, factors: &vec![factor; parts], z_factor: None };
    let alone = tokens.gradient(rig, &losses, None)?;
    check.close(&format!("grad.{kind}.logits"), &alone)?;
    let with_main = tokens.gradient(rig, &losses, Some(main))?;
    check.close(&format!("grad.{kind}.logits_with_main"), &with_main)?;
    check.uncompared_if_any(&format!("grad.{kind}.scores"));
    Ok(())
}
