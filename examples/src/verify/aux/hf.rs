//! `hf_load_balancing_*`: the loss of transformers, over all layers at once, without the tokens that a mask leaves out.
//!
//! `E * sum over e of (count_e / N) * (probability sum_e / N)` over N tokens: the batch-wise loss of those tokens without its
//! division by K.

use super::stats::{Sizes, Tokens, value};
use crate::verify::check::Check;
use crate::verify::gradient::Losses;
use crate::verify::rig::Rig;
use crate::verify::routing::Router;
use anyhow::{Result, ensure};
use moe_core::MoeDevice;
use moe_core::ops::{RouteRule, ScoreFunction};

/// Compares one case.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let [layers, tokens, experts] = case.dims("in.logits")?;
    keys.agrees("layers", layers)?;
    keys.agrees("num_experts", experts)?;
    let (sequences, length) = (keys.size("B")?, keys.size("L")?);
    ensure!(sequences * length == tokens, "B * L is not {tokens}");
    let top_k = keys.count("top_k")?;
    let masked = keys.flag("masked")?;
    keys.finish()?;
    let mask = if masked {
        case.indices("in.attention_mask", &[sequences, length], 1)?
    } else {
        case.absent("in.attention_mask")?;
        vec![1; tokens]
    };
    let all = case.floats("in.logits", &[layers, tokens, experts])?;
    let kept: Vec<usize> = (0..layers * tokens).filter(|token| mask[token % tokens] == 1).collect();
    ensure!(!kept.is_empty(), "the mask leaves no token");
    let rows = kept.iter().flat_map(|token| &all[token * experts..][..experts]);
    let logits: Vec<f32> = rows.copied().collect();

    let router = Router::<f32>::identity(kept.len(), experts, top_k, RouteRule::default())?;
    let routed = router.route(rig, &logits)?;
    let tokens = Tokens {
        sizes: Sizes {
            sequences: 1,
            length: kept.len(),
            experts,
            top_k,
            coeff: top_k as f64,
            score: ScoreFunction::Softmax,
        },
        logits,
        ids: routed.ids,
    };
    let bounds = tokens.bounds(kept.len())?;
    let stats = tokens.stats(rig, &bounds)?;
    let factor = tokens.sizes.per_batch(kept.len());
    check.close("out.loss", &[value(factor, &stats.counts, &stats.prob_sums)])?;
    let losses = Losses { sequences: &bounds, counts: &stats.counts, factors: &[factor], z_factor: None };
    let mut gradient = vec![0.0; all.len()];
    let rows = tokens.gradient(rig, &losses, None)?;
    for (row, token) in rows.chunks_exact(experts).zip(kept) {
        gradient[token * experts..][..experts].copy_from_slice(row);
    }
    check.close("grad.logits", &gradient)?;
    Ok(())
}
