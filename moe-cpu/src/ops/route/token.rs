//! What follows the gate's product: scores, choice and weights, token by token.

use crate::choose::{NEVER, SPAN, choose, key};
use crate::exact::exp;
use crate::gemm::{Float, Job, Scratch, Simd, bytes};
use crate::scores::{padded, score};
use moe_core::ops::{RouteDims, RouteRule, ScoreFunction, Selection};

/// What decides a token's experts besides its sums.
pub(super) struct Rule<'a, T> {
    pub(super) dims: &'a RouteDims,
    pub(super) gate_bias: Option<&'a [T]>,
    pub(super) selection_bias: Option<&'a [f32]>,
    pub(super) forced: Option<&'a [u32]>,
    /// global number of the call's first slot
    pub(super) first_slot: u64,
}

/// A worker's memory for one token.
pub(super) struct Row<'a> {
    scores: &'a mut [f32],
    keys: &'a mut [i32],
    tops: &'a mut [i32],
    groups: &'a mut [i32],
    kept: &'a mut [u32],
}

impl<'a> Row<'a> {
    pub(super) fn bytes(experts: usize) -> usize {
        let len = padded(experts);
        bytes::<f32>(len) + 2 * bytes::<i32>(len) + bytes::<i32>(len / SPAN) + bytes::<u32>(len)
    }

    pub(super) fn new(experts: usize, scratch: &mut Scratch<'a>) -> Self {
        let len = padded(experts);
        let mut integers = |len| bytemuck::cast_slice_mut(scratch.take::<u32>(len));
        let (keys, tops, groups) = (integers(len), integers(len / SPAN), integers(len));
        Self { scores: scratch.take(len), keys, tops, groups, kept: scratch.take(len) }
    }
}

/// The outputs of a block of tokens.
pub(super) struct Slots<'a> {
    /// number of the first slot in the call
    pub(super) first: usize,
    pub(super) logits: &'a mut [f32],
    pub(super) ids: &'a mut [u32],
    pub(super) weights: &'a mut [f32],
}

/// Finishes a block of tokens; gives the number of logits that are NaN or infinite.
pub(super) struct Finish<'a, 'r, T> {
    pub(super) rule: &'a Rule<'a, T>,
    pub(super) sums: &'a [f32],
    pub(super) pitch: usize,
    pub(super) out: Slots<'a>,
    pub(super) row: &'a mut Row<'r>,
}

impl<T: Float> Job for Finish<'_, '_, T> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> u32 {
        let Self { rule, sums, pitch, out, row } = self;
        let RouteDims { experts, top_k, rule: RouteRule { score: function, .. }, .. } = *rule.dims;
        let slots = out.ids.chunks_exact_mut(top_k).zip(out.weights.chunks_exact_mut(top_k));
        let rows = out.logits.chunks_exact_mut(experts).zip(sums.chunks_exact(pitch));
        let mut bad = 0;
        for (token, ((logits, sums), (ids, weights))) in rows.zip(slots).enumerate() {
            for (expert, (logit, sum)) in logits.iter_mut().zip(sums).enumerate() {
                *logit = sum + rule.gate_bias.map_or(0.0, |bias| bias[expert].widen());
                bad += u32::from(!logit.is_finite());
            }
            row.scores[..experts].copy_from_slice(logits);
            score(function, row.scores, experts);
            rule.choose(out.first + token * top_k, row, ids);
            let scores = &row.scores[..experts];
            for id in ids.iter_mut() {
                let known = scores.get(*id as usize).is_some_and(|score| !score.is_nan());
                *id = if known { *id } else { experts as u32 };
            }
            weigh(&rule.dims.rule, scores, ids, weights);
        }
        bad
    }
}

impl<T> Rule<'_, T> {
    /// The experts of the token whose first slot is `slot`.
    #[inline(always)]
    fn choose(&self, slot: usize, row: &mut Row<'_>, ids: &mut [u32]) {
        let RouteDims { experts, top_k, rule, .. } = *self.dims;
        if let Some(forced) = self.forced {
            ids.copy_from_slice(&forced[slot..slot + top_k]);
            return;
        }
        if rule.selection == Selection::RoundRobin {
            for (k, id) in ids.iter_mut().enumerate() {
                *id = (self.first_slot.wrapping_add((slot + k) as u64) % experts as u64) as u32;
            }
            return;
        }
        let scores = &row.scores[..experts];
        let keys = row.keys.iter_mut().zip(scores);
        match self.selection_bias {
            Some(bias) => keys.zip(bias).for_each(|((place, score), bias)| *place = key(score + bias)),
            None => keys.for_each(|(place, score)| *place = key(*score)),
        }
        row.keys[experts..].fill(NEVER);
        if rule.groups_kept < rule.groups {
            self.limit_groups(row);
        }
        choose(row.keys, row.tops, ids, experts as u32);
    }

    /// Leaves only the experts of the best groups to choose from.
    #[inline(always)]
    fn limit_groups(&self, row: &mut Row<'_>) {
        let RouteDims { experts, rule, .. } = *self.dims;
        let size = experts / rule.groups;
        let strengths = &mut row.groups[..rule.groups.next_multiple_of(SPAN)];
        strengths[rule.groups..].fill(NEVER);
        for (strength, members) in strengths.iter_mut().zip(row.keys[..experts].chunks_exact(size)) {
            *strength = key(strength_of(members));
        }
        let kept = &mut row.kept[..rule.groups_kept];
        choose(strengths, row.tops, kept, rule.groups as u32);
        for (group, members) in row.keys[..experts].chunks_exact_mut(size).enumerate() {
            if !kept.contains(&(group as u32)) {
                members.fill(NEVER);
            }
        }
    }
}

/// The sum of a group's two best choice scores; NaN counts as -infinity.
#[inline(always)]
fn strength_of(members: &[i32]) -> f32 {
    let mut best = [key(f32::NEG_INFINITY); 2];
    for &member in members {
        best = [best[0].max(member), best[1].max(best[0].min(member))];
    }
    let [first, second] = best.map(crate::choose::value);
    if members.len() == 1 { first } else { first + second }
}

/// The weights of the chosen experts; sums over K in slot order.
#[inline(always)]
fn weigh(rule: &RouteRule, scores: &[f32], ids: &[u32], weights: &mut [f32]) {
    for (weight, id) in weights.iter_mut().zip(ids) {
        *weight = scores.get(*id as usize).copied().unwrap_or(0.0);
    }
    let known = |id: &u32| (*id as usize) < scores.len();
    if rule.score == ScoreFunction::SoftmaxTopK {
        let mut max = f32::NEG_INFINITY;
        for (weight, _) in weights.iter().zip(ids).filter(|(_, id)| known(id)) {
            max = if *weight > max { *weight } else { max };
        }
        let mut sum = 0.0;
        for (weight, _) in weights.iter_mut().zip(ids).filter(|(_, id)| known(id)) {
            *weight = exp(*weight - max);
            sum += *weight;
        }
        for (weight, _) in weights.iter_mut().zip(ids).filter(|(_, id)| known(id)) {
            *weight /= sum;
        }
    } else if rule.normalize {
        let mut sum = 0.0;
        for weight in weights.iter() {
            sum += *weight;
        }
        for weight in weights.iter_mut() {
            *weight /= sum + 1e-20;
        }
    }
    for weight in weights.iter_mut() {
        *weight *= rule.scale;
    }
}
