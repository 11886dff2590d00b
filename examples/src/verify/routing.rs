//! The router of a case: its keys, its parameters, and one forward pass by ops.

use super::rig::{Loaded, Rig, view_if};
use crate::fixture::{Case, FixtureError, Keys};
use anyhow::{Result, ensure};
use moe_core::ops::{Route, RouteArgs, RouteDims, RouteRule, STAMP, ScoreFunction, Selection};
use moe_core::{MoeDevice, Scalar, whole, whole_mut};

/// What the names of parameters start with in most groups.
pub(crate) const PARAM: &str = "param.";

/// The router's rule from the keys `score_func`, `route_norm`, `route_scale`, `num_expert_groups`,
/// `num_limited_groups` and `force_load_balance`.
///
/// # Errors
/// [`FixtureError`] if one of them is missing or out of range.
pub(crate) fn rule(keys: &Keys<'_>) -> Result<RouteRule, FixtureError> {
    let groups = keys.size_if_any("num_expert_groups")?.unwrap_or(1);
    Ok(RouteRule {
        score: score(keys)?,
        selection: if keys.flag("force_load_balance")? { Selection::RoundRobin } else { Selection::TopK },
        groups,
        groups_kept: keys.size_if_any("num_limited_groups")?.unwrap_or(groups),
        normalize: keys.flag("route_norm")?,
        scale: keys.number("route_scale", 1.0)? as f32,
        ..RouteRule::default()
    })
}

/// The score function from the key `score_func`, which must be there.
///
/// # Errors
/// [`FixtureError`] if it is missing or unknown.
pub(crate) fn score(keys: &Keys<'_>) -> Result<ScoreFunction, FixtureError> {
    keys.required("score_func")?;
    let names = [("softmax", ScoreFunction::Softmax), ("sigmoid", ScoreFunction::Sigmoid)];
    keys.choice("score_func", &names)
}

/// A router with its parameters on the host.
#[derive(Clone)]
pub(crate) struct Router<T> {
    /// sizes and rule
    pub(crate) dims: RouteDims,
    /// (experts, width)
    pub(crate) gate: Vec<T>,
    /// (experts)
    pub(crate) gate_bias: Option<Vec<T>>,
    /// (experts), added for selection
    pub(crate) expert_bias: Option<Vec<f32>>,
}

impl<T: Scalar<Acc = f32>> Router<T> {
    /// The router of a case with `tokens` tokens. Its parameters' names start with `prefix`; `gate.bias` is there exactly if
    /// `gate_bias` says so.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub(crate) fn of(
        case: &Case,
        keys: &Keys<'_>,
        prefix: &str,
        tokens: usize,
    ) -> Result<Self, FixtureError> {
        let name = |name: &str| format!("{prefix}{name}");
        let [experts, width] = case.dims(&name("gate.weight"))?;
        keys.agrees("num_experts", experts)?;
        let gate_bias = if keys.flag("gate_bias")? {
            Some(case.scalars(&name("gate.bias"), &[experts])?)
        } else {
            case.absent(&name("gate.bias"))?;
            None
        };
        let expert_bias = match case.find(&name("expert_bias")) {
            Some(bias) => Some(bias.shaped(&[experts])?.floats()?),
            None => None,
        };
        Ok(Self {
            dims: RouteDims { tokens, width, experts, top_k: keys.count("top_k")?, rule: rule(keys)? },
            gate: case.scalars(&name("gate.weight"), &[experts, width])?,
            gate_bias,
            expert_bias,
        })
    }

    /// A router whose logits are its input: the gate is the identity.
    ///
    /// # Errors
    /// If there are so many experts that the gate would be too large.
    pub(crate) fn identity(tokens: usize, experts: usize, top_k: usize, rule: RouteRule) -> Result<Self> {
        ensure!(experts <= 1 << 12, "{experts} experts are too many for a gate that is the identity");
        let one = |at: usize| if at.is_multiple_of(experts + 1) { 1.0 } else { 0.0 };
        Ok(Self {
            dims: RouteDims { tokens, width: experts, experts, top_k, rule },
            gate: (0..experts * experts).map(|at| T::narrow(one(at))).collect(),
            gate_bias: None,
            expert_bias: None,
        })
    }

    /// A router that sees one element of each token and has the gate 0.
    pub(crate) fn blind(tokens: usize, experts: usize, top_k: usize, rule: RouteRule) -> Self {
        Self {
            dims: RouteDims { tokens, width: 1, experts, top_k, rule },
            gate: vec![T::default(); experts],
            gate_bias: None,
            expert_bias: None,
        }
    }

    /// The same router without choice: its weights are all experts' scores.
    fn of_all_scores(&self) -> Self {
        let rule = RouteRule { score: self.dims.rule.score, ..RouteRule::default() };
        Self {
            dims: RouteDims { top_k: self.dims.experts, rule, ..self.dims },
            gate: self.gate.clone(),
            gate_bias: self.gate_bias.clone(),
            expert_bias: None,
        }
    }

    /// The gate on the device.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn load<D: MoeDevice<T>>(&self, rig: &Rig<D>) -> Result<Loaded<D, T>> {
        rig.load(&self.gate, self.dims.pack())
    }

    /// Routes the tokens `x`, the first of which is global token 0.
    ///
    /// # Errors
    /// Shape errors and the device's.
    pub(crate) fn route<D: MoeDevice<T>>(&self, rig: &Rig<D>, x: &[T]) -> Result<Routed> {
        let RouteDims { tokens, experts, top_k, .. } = self.dims;
        let (x, gate) = (rig.put(x)?, self.load(rig)?);
        let gate_bias = rig.put_if(self.gate_bias.as_deref())?;
        let expert_bias = rig.put_if(self.expert_bias.as_deref())?;
        let stamp = rig.put(&[0_u32; STAMP])?;
        let mut logits = rig.poisoned::<f32>(tokens * experts)?;
        let mut ids = rig.poisoned::<u32>(tokens * top_k)?;
        let mut weights = rig.poisoned::<f32>(tokens * top_k)?;
        let mut non_finite = rig.poisoned::<u32>(1)?;
        let args = RouteArgs {
            x: whole::<D, T>(&x),
            gate: gate.weight(),
            gate_bias: view_if::<D, T>(&gate_bias),
            selection_bias: view_if::<D, f32>(&expert_bias),
            forced_ids: None,
            stamp: Some(whole::<D, u32>(&stamp)),
            logits: whole_mut::<D, f32>(&mut logits),
            ids: whole_mut::<D, u32>(&mut ids),
            weights: whole_mut::<D, f32>(&mut weights),
            non_finite: whole_mut::<D, u32>(&mut non_finite),
        };
        rig.launch::<Route<T>>(&self.dims, args)?;
        Ok(Routed {
            logits: rig.get::<f32>(&logits)?,
            ids: rig.get::<u32>(&ids)?,
            weights: rig.get::<f32>(&weights)?,
        })
    }

    /// The scores of all experts (tokens, experts): the weights of a router that takes all of them.
    ///
    /// # Errors
    /// Shape errors and the device's.
    pub(crate) fn scores<D: MoeDevice<T>>(&self, rig: &Rig<D>, x: &[T]) -> Result<Vec<f32>> {
        let routed = self.of_all_scores().route(rig, x)?;
        let mut scores = vec![f32::NAN; routed.ids.len()];
        for (slot, (id, weight)) in routed.ids.iter().zip(&routed.weights).enumerate() {
            let row = slot / self.dims.experts * self.dims.experts;
            if let Some(score) = scores[row..].get_mut(*id as usize) {
                *score = *weight;
            }
        }
        Ok(scores)
    }
}

/// What a router returned.
pub(crate) struct Routed {
    /// (tokens, experts)
    pub(crate) logits: Vec<f32>,
    /// (tokens, top_k)
    pub(crate) ids: Vec<u32>,
    /// (tokens, top_k)
    pub(crate) weights: Vec<f32>,
}
