//! What all balancing losses are made of: the counts and probability sums of some tokens.

use crate::fixture::{Case, FixtureError, Keys};
use crate::verify::gradient::{Losses, logit_gradients};
use crate::verify::rig::Rig;
use crate::verify::routing::{Routed, score};
use anyhow::{Result, ensure};
use moe_core::ops::{RouteDims, RouteRule, RouteStats, RouteStatsArgs, RouteStatsDims, ScoreFunction};
use moe_core::{MoeDevice, whole, whole_mut};

/// Sizes of a balancing loss, from the keys `B`, `L`, `num_experts`, `top_k`, `coeff` and `score_func`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// B
    pub(crate) sequences: usize,
    /// L
    pub(crate) length: usize,
    /// E
    pub(crate) experts: usize,
    /// K
    pub(crate) top_k: usize,
    /// the loss's coefficient
    pub(crate) coeff: f64,
    /// logit to score
    pub(crate) score: ScoreFunction,
}

impl Sizes {
    /// The sizes of a case, which its logits (B, L, E) must agree with.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub(crate) fn of(case: &Case, keys: &Keys<'_>) -> Result<Self, FixtureError> {
        let [sequences, length, experts] = case.dims("in.logits")?;
        keys.agrees("B", sequences)?;
        keys.agrees("L", length)?;
        keys.agrees("num_experts", experts)?;
        keys.required("coeff")?;
        Ok(Self {
            sequences,
            length,
            experts,
            top_k: keys.count("top_k")?,
            coeff: keys.number("coeff", 0.0)?,
            score: score(keys)?,
        })
    }

    /// All tokens of the case.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub(crate) fn tokens(&self, case: &Case) -> Result<Tokens, FixtureError> {
        let Self { sequences, length, experts, top_k, .. } = *self;
        let most = u32::try_from(experts).unwrap_or(u32::MAX).saturating_sub(1);
        Ok(Tokens {
            sizes: *self,
            logits: case.floats("in.logits", &[sequences, length, experts])?,
            ids: case.indices("in.topk_ids", &[sequences, length, top_k], most)?,
        })
    }

    /// What a count is multiplied with in the loss of each sequence, and its coefficient: the mean over `sequences` of
    /// `E / (K L) * count * (probability sum / L)`.
    pub(crate) fn per_sequence(&self, sequences: usize) -> f32 {
        self.factor(self.length) / sequences as f32
    }

    /// The same for one loss over `tokens` tokens.
    pub(crate) fn per_batch(&self, tokens: usize) -> f32 {
        self.factor(tokens)
    }

    fn factor(&self, tokens: usize) -> f32 {
        let (experts, top_k, tokens) = (self.experts as f64, self.top_k as f64, tokens as f64);
        (self.coeff * experts / (top_k * tokens * tokens)) as f32
    }
}

/// Some tokens of a case.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    /// of the whole case
    pub(crate) sizes: Sizes,
    /// (tokens, experts)
    pub(crate) logits: Vec<f32>,
    /// (tokens, top_k)
    pub(crate) ids: Vec<u32>,
}

/// Counts and probability sums per sequence.
pub(crate) struct Stats {
    /// (sequences, experts)
    pub(crate) counts: Vec<u32>,
    /// (sequences, experts)
    pub(crate) prob_sums: Vec<f32>,
    /// sum over all tokens of squared logsumexp
    pub(crate) z_sum: f32,
}

impl Tokens {
    /// The tokens of these sequences and of these places in each sequence.
    pub(crate) fn part(&self, sequences: std::ops::Range<usize>, places: std::ops::Range<usize>) -> Self {
        let Sizes { length, experts, top_k, .. } = self.sizes;
        let (mut logits, mut ids) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let tokens = sequence * length + places.start..sequence * length + places.end;
            logits.extend_from_slice(&self.logits[tokens.start * experts..tokens.end * experts]);
            ids.extend_from_slice(&self.ids[tokens.start * top_k..tokens.end * top_k]);
        }
        Self { sizes: self.sizes, logits, ids }
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.logits.len() / self.sizes.experts.max(1)
    }

    /// First tokens of sequences of `length`, and the end.
    pub(crate) fn bounds(&self, length: usize) -> Result<Vec<u32>> {
        ensure!(length > 0 && self.len() > 0, "a balancing loss of no tokens has no value");
        let ends = (0..=self.len()).step_by(length);
        Ok(ends.map(u32::try_from).collect::<Result<_, _>>()?)
    }

    /// Counts and probability sums of the sequences between `bounds`.
    ///
    /// # Errors
    /// Shape errors and the device's.
    pub(crate) fn stats<D: MoeDevice<f32>>(&self, rig: &Rig<D>, bounds: &[u32]) -> Result<Stats> {
        let Sizes { experts, top_k, score, .. } = self.sizes;
        let dims = RouteStatsDims { tokens: self.len(), experts, top_k, sequences: bounds.len() - 1, score };
        let (logits, ids, bounds) = (rig.put(&self.logits)?, rig.put(&self.ids)?, rig.put(bounds)?);
        let mut counts = rig.poisoned::<u32>(dims.sequences * experts)?;
        let mut prob_sums = rig.poisoned::<f32>(dims.sequences * experts)?;
        let mut z_sum = rig.poisoned::<f32>(1)?;
        let args = RouteStatsArgs {
            logits: whole::<D, f32>(&logits),
            ids: whole::<D, u32>(&ids),
            sequences: whole::<D, u32>(&bounds),
            counts: whole_mut::<D, u32>(&mut counts),
            prob_sums: whole_mut::<D, f32>(&mut prob_sums),
            z_sum: whole_mut::<D, f32>(&mut z_sum),
        };
        rig.launch::<RouteStats<f32>>(&dims, args)?;
        Ok(Stats {
            counts: rig.get::<u32>(&counts)?,
            prob_sums: rig.get::<f32>(&prob_sums)?,
            z_sum: rig.get::<f32>(&z_sum)?[0],
        })
    }

    /// The gradient of the logits of these losses, with `dweights` (or 0) at the chosen scores.
    ///
    /// # Errors
    /// Shape errors and the device's.
    pub(crate) fn gradient<D: MoeDevice<f32>>(
        &self,
        rig: &Rig<D>,
        losses: &Losses<'_>,
        dweights: Option<&[f32]>,
    ) -> Result<Vec<f32>> {
        let dims = RouteDims {
            tokens: self.len(),
            width: self.sizes.experts,
            experts: self.sizes.experts,
            top_k: self.sizes.top_k,
            rule: RouteRule { score: self.sizes.score, ..RouteRule::default() },
        };
        let routed = Routed { logits: self.logits.clone(), ids: self.ids.clone(), weights: Vec::new() };
        let zeros = vec![0.0; self.ids.len()];
        let dweights = dweights.unwrap_or(&zeros);
        logit_gradients::<f32, D>(rig, &dims, &routed, dweights, Some(losses))
    }
}

/// `sum of factor * counts * probability sums`, the value of a loss.
pub(crate) fn value(factor: f32, counts: &[u32], prob_sums: &[f32]) -> f32 {
    let terms = counts.iter().zip(prob_sums);
    let sum: f64 = terms.map(|(count, sum)| f64::from(*count) * f64::from(*sum)).sum();
    (f64::from(factor) * sum) as f32
}
