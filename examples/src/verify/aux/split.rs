//! `microbatch_*`, `batch_dp_*`, `seq_cp_*`: losses of tokens that are split over calls or ranks.

use super::stats::{Sizes, Stats, Tokens, value};
use crate::fixture::{FixtureError, Keys};
use crate::verify::check::Check;
use crate::verify::gradient::Losses;
use crate::verify::rig::Rig;
use anyhow::Result;
use moe_core::MoeDevice;

/// The value of one part's loss and the gradient of its logits.
struct Part {
    loss: f32,
    gradient: Vec<f32>,
}

/// The loss of `tokens` with the same factor for all sequences and these counts, which may come from more tokens.
fn part<D: MoeDevice<f32>>(
    rig: &Rig<D>,
    tokens: &Tokens,
    bounds: &[u32],
    counts: &[u32],
    stats: &Stats,
    factor: f32,
) -> Result<Part> {
    let losses =
        Losses { sequences: bounds, counts, factors: &vec![factor; bounds.len() - 1], z_factor: None };
    Ok(Part { loss: value(factor, counts, &stats.prob_sums), gradient: tokens.gradient(rig, &losses, None)? })
}

/// The loss of `tokens` in sequences of `length`, with their own counts.
fn own<D: MoeDevice<f32>>(rig: &Rig<D>, tokens: &Tokens, length: usize, factor: f32) -> Result<Part> {
    let bounds = tokens.bounds(length)?;
    let stats = tokens.stats(rig, &bounds)?;
    part(rig, tokens, &bounds, &stats.counts, &stats, factor)
}

/// How many parts `key` asks for; they must divide `whole`.
fn parts(keys: &Keys<'_>, key: &str, whole: usize) -> Result<usize, FixtureError> {
    let parts = keys.count(key)?;
    if whole.is_multiple_of(parts) && whole > 0 {
        return Ok(parts);
    }
    Err(FixtureError::WrongKey {
        key: key.to_owned(),
        wanted: format!("must divide {whole}"),
        got: parts.to_string(),
    })
}

fn losses(parts: &[Part]) -> Vec<f32> {
    parts.iter().map(|part| part.loss).collect()
}

fn gradients(parts: &[Part]) -> Vec<f32> {
    parts.iter().flat_map(|part| part.gradient.iter().copied()).collect()
}

/// Micro-batches of whole sequences; the coefficient of each is `coeff * B_micro / B`.
pub(crate) fn micro_batches<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let sizes = Sizes::of(case, &keys)?;
    let parts = parts(&keys, "microbatches", sizes.sequences)?;
    keys.choice("normaliser", &[("coeff * B_micro / B", ())])?;
    keys.finish()?;
    let tokens = sizes.tokens(case)?;
    let step = sizes.sequences / parts;
    let micro: Vec<Tokens> =
        (0..parts).map(|part| tokens.part(part * step..(part + 1) * step, 0..sizes.length)).collect();

    let factor = sizes.per_sequence(sizes.sequences);
    let full = own(rig, &tokens, sizes.length, factor)?;
    let by_part = |tokens: &Tokens| own(rig, tokens, sizes.length, factor);
    let split = micro.iter().map(by_part).collect::<Result<Vec<_>>>()?;
    check.close("out.seq.full", &[full.loss])?;
    check.close("out.seq.micro", &losses(&split))?;
    check.close("grad.seq.logits", &full.gradient)?;
    check.close("grad.seq.logits", &gradients(&split))?;

    let full = own(rig, &tokens, tokens.len(), sizes.per_batch(tokens.len()))?;
    let factor = sizes.per_batch(tokens.len() / parts) / parts as f32;
    let by_part = |tokens: &Tokens| own(rig, tokens, tokens.len(), factor);
    let split = micro.iter().map(by_part).collect::<Result<Vec<_>>>()?;
    check.close("out.batch.full", &[full.loss])?;
    check.close("out.batch.micro", &losses(&split))?;
    check.close("grad.batch.logits_full", &full.gradient)?;
    check.close("grad.batch.logits_micro", &gradients(&split))?;
    Ok(())
}

/// The batch-wise loss over data-parallel ranks: counts are summed over ranks, probabilities stay local.
pub(crate) fn data_parallel<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let sizes = Sizes::of(case, &keys)?;
    let ranks = parts(&keys, "dp", sizes.sequences)?;
    keys.finish()?;
    let tokens = sizes.tokens(case)?;
    let step = sizes.sequences / ranks;
    let mut local = Vec::new();
    for rank in 0..ranks {
        let tokens = tokens.part(rank * step..(rank + 1) * step, 0..sizes.length);
        let bounds = tokens.bounds(tokens.len())?;
        let stats = tokens.stats(rig, &bounds)?;
        local.push((tokens, bounds, stats));
    }
    let counts = sum(local.iter().map(|(.., stats)| &stats.counts[..]), sizes.experts);
    let factor = sizes.per_batch(tokens.len());
    let by_rank = |(tokens, bounds, stats): &(Tokens, Vec<u32>, Stats)| {
        part(rig, tokens, bounds, &counts, stats, factor)
    };
    let split = local.iter().map(by_rank).collect::<Result<Vec<_>>>()?;
    check.same("out.global_counts", &counts)?;
    check.close("out.per_rank", &losses(&split))?;
    check.close("out.full", &[losses(&split).iter().sum::<f32>()])?;
    check.close("out.full", &[own(rig, &tokens, tokens.len(), factor)?.loss])?;
    check.close("grad.logits", &gradients(&split))?;
    Ok(())
}

/// The sequence-wise loss with each sequence split over ranks: its counts are summed over ranks, probability sums stay
/// local and are divided by the whole length.
pub(crate) fn context_parallel<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let sizes = Sizes::of(case, &keys)?;
    let ranks = parts(&keys, "cp", sizes.length)?;
    keys.finish()?;
    let tokens = sizes.tokens(case)?;
    let step = sizes.length / ranks;
    let mut local = Vec::new();
    for rank in 0..ranks {
        let tokens = tokens.part(0..sizes.sequences, rank * step..(rank + 1) * step);
        let bounds = tokens.bounds(step)?;
        let stats = tokens.stats(rig, &bounds)?;
        local.push((tokens, bounds, stats));
    }
    let local_counts: Vec<u32> = local.iter().flat_map(|(.., stats)| stats.counts.clone()).collect();
    let len = sizes.sequences * sizes.experts;
    let counts = sum(local.iter().map(|(.., stats)| &stats.counts[..]), len);
    let factor = sizes.per_sequence(sizes.sequences);
    let by_rank = |(tokens, bounds, stats): &(Tokens, Vec<u32>, Stats)| {
        part(rig, tokens, bounds, &counts, stats, factor)
    };
    let split = local.iter().map(by_rank).collect::<Result<Vec<_>>>()?;
    check.same("out.local_counts", &local_counts)?;
    check.same("out.counts", &counts)?;
    check.close("out.per_rank", &losses(&split))?;
    check.close("out.full", &[losses(&split).iter().sum::<f32>()])?;
    check.close("out.full", &[own(rig, &tokens, sizes.length, factor)?.loss])?;
    // Back from rank-major to the order of the sequences.
    let mut gradient = Vec::new();
    for sequence in 0..sizes.sequences {
        for part in &split {
            let row = step * sizes.experts;
            gradient.extend_from_slice(&part.gradient[sequence * row..][..row]);
        }
    }
    check.close("grad.logits", &gradient)?;
    Ok(())
}

/// Elementwise sum: what an all-reduce over the ranks gives.
fn sum<'a>(ranks: impl Iterator<Item = &'a [u32]>, len: usize) -> Vec<u32> {
    let mut sum = vec![0; len];
    for counts in ranks {
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    sum
}
