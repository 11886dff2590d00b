//! The group `dispatch`: slots sorted by expert, received rows in expert-major order, padding, forced balance.

use super::check::Check;
use super::moving::{combine, gather, merge, sort};
use super::padding::paddings;
use super::rig::Rig;
use super::routing::Router;
use crate::fixture::{FixtureError, Keys};
use anyhow::Result;
use moe_core::ops::{CombineDims, GatherDims, RouteRule, Selection};
use moe_core::{MoeDevice, Scalar};
use serde_json::Value;

/// Compares one case. Which of the three kinds it is, its tensors and keys say.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<T, D>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T> + MoeDevice<f32>,
{
    let keys = check.case.keys();
    keys.get("dtype");
    if check.case.find("in.counts_rank_major").is_some() {
        permute::<T, D>(rig, check, keys)
    } else if let Some(cases) = keys.get("cases") {
        round_robin::<T, D>(rig, check, cases)?;
        Ok(keys.finish()?)
    } else {
        reorder::<T, D>(rig, check, keys)
    }
}

fn reorder<T, D>(rig: &Rig<D>, check: &mut Check<'_>, keys: Keys<'_>) -> Result<()>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T> + MoeDevice<f32>,
{
    let case = check.case;
    let [tokens, width] = case.dims("in.x")?;
    let (experts, top_k) = (keys.count("num_experts")?, keys.count("top_k")?);
    keys.agrees("T", tokens)?;
    keys.agrees("D", width)?;
    keys.finish()?;
    let slots = tokens * top_k;
    let x = case.scalars::<T>("in.x", &[tokens, width])?;
    let ids = case.indices("in.topk_ids", &[tokens, top_k], experts as u32 - 1)?;
    let scores = case.floats("in.topk_scores", &[tokens, top_k])?;
    let rows = case.scalars::<T>("in.expert_out", &[slots, width])?;

    let sorted = sort::<T, D>(rig, &ids, experts)?;
    check.same("out.counts", &sorted.counts)?;
    check.same("out.offsets", &sorted.offsets)?;
    check.same("out.sorted_slots", &sorted.slot_of_row)?;
    let dims =
        |sources, fan, width| GatherDims { sources, fan, rows: slots, width, groups: experts, pitch: 0 };
    let (index, offsets) = (&sorted.slot_of_row, &sorted.offsets);
    let tokens_of = gather(rig, dims(tokens, top_k, 1), &numbers(tokens)?, index, offsets, -1.0)?;
    check.exact("out.token_indices", &integers(&tokens_of))?;
    let input = gather(rig, dims(tokens, top_k, width), &x, index, offsets, T::default())?;
    check.close("out.routed_input", &input)?;
    let sorted_scores = gather(rig, dims(slots, 1, 1), &scores, index, offsets, f32::NAN)?;
    check.close("out.sorted_scores", &sorted_scores)?;
    let dims = CombineDims { tokens, top_k, width, rows: slots };
    let combined = combine(rig, dims, &rows, &sorted.row_of_slot, &scores)?;
    check.close("out.combined", &combined)?;

    let source = numbers(tokens)?;
    for padding in paddings(check.case, "token_indices") {
        padding.compare(rig, check, &source, top_k, index, offsets)?;
    }
    Ok(())
}

fn permute<T, D>(rig: &Rig<D>, check: &mut Check<'_>, keys: Keys<'_>) -> Result<()>
where
    T: Scalar<Acc = f32>,
    D: MoeDevice<T> + MoeDevice<f32>,
{
    let case = check.case;
    let [ranks, experts] = case.dims("in.counts_rank_major")?;
    let [rows, width] = case.dims("in.x")?;
    keys.agrees("ep", ranks)?;
    keys.agrees("local_experts", experts)?;
    keys.finish()?;
    let x = case.scalars::<T>("in.x", &[rows, width])?;
    let counts = case.indices("in.counts_rank_major", &[ranks, experts], u32::try_from(rows)?)?;

    let merged = merge::<T, D>(rig, &counts, ranks, rows)?;
    check.same("out.counts", &lengths(&merged.offsets))?;
    check.same("out.permuted_indices", &merged.index)?;
    let dims = GatherDims { sources: rows, fan: 1, rows, width, groups: experts, pitch: 0 };
    let moved = gather(rig, dims, &x, &merged.index, &merged.offsets, T::default())?;
    check.close("out.x", &moved)?;
    let source = numbers(rows)?;
    for padding in paddings(check.case, "permuted_indices") {
        padding.compare(rig, check, &source, 1, &merged.index, &merged.offsets)?;
    }
    Ok(())
}

/// Each of `cases` has sizes of its own: slot i goes to expert i mod E.
fn round_robin<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    check: &mut Check<'_>,
    cases: &Value,
) -> Result<()> {
    let wrong = || FixtureError::WrongKey {
        key: "config.cases".to_owned(),
        wanted: "must be a list of objects".to_owned(),
        got: cases.to_string(),
    };
    for sizes in cases.as_array().ok_or_else(wrong)? {
        let keys = Keys::of(sizes.as_object().ok_or_else(wrong)?);
        let (tokens, top_k, experts) = (keys.size("T")?, keys.count("K")?, keys.count("E")?);
        keys.finish()?;
        let name = format!("t{tokens}_k{top_k}_e{experts}");
        check.case.tensor(&format!("out.ids.{name}"))?.shaped(&[tokens, top_k])?;
        check.case.tensor(&format!("out.counts.{name}"))?.shaped(&[experts])?;
        let rule = RouteRule { selection: Selection::RoundRobin, ..RouteRule::default() };
        let router = Router::<T>::blind(tokens, experts, top_k, rule);
        let routed = router.route(rig, &vec![T::default(); tokens])?;
        check.same(&format!("out.ids.{name}"), &routed.ids)?;
        let counts = sort::<T, D>(rig, &routed.ids, experts)?.counts;
        check.same(&format!("out.counts.{name}"), &counts)?;
    }
    Ok(())
}

/// Differences of neighbours.
pub(crate) fn lengths(offsets: &[u32]) -> Vec<u32> {
    offsets.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect()
}

/// The numbers 0, 1, ... as rows of width 1 that `Gather` can move. f32 holds them exactly below 2^24.
pub(crate) fn numbers(len: usize) -> Result<Vec<f32>> {
    anyhow::ensure!(len < 1 << 24, "{len} rows are too many to be numbered in f32");
    Ok((0..len).map(|number| number as f32).collect())
}

/// Numbers that were moved, back as integers.
pub(crate) fn integers(moved: &[f32]) -> Vec<i64> {
    moved.iter().map(|number| *number as i64).collect()
}
