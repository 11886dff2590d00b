//! Backward through a router by ops: the gradients of logits, input and gate.

use super::rig::{Rig, view_if};
use super::routing::{Routed, Router};
use anyhow::Result;
use moe_core::ops::{
    Aux, GateBwd, GateBwdArgs, GateBwdDims, RouteBwd, RouteBwdArgs, RouteBwdDims, RouteDims,
};
use moe_core::{MoeDevice, Scalar, whole, whole_mut};

/// The balancing losses of a call.
pub(crate) struct Losses<'a> {
    /// (sequences + 1): first token of each sequence
    pub(crate) sequences: &'a [u32],
    /// (sequences, experts)
    pub(crate) counts: &'a [u32],
    /// (sequences): what a count is multiplied with
    pub(crate) factors: &'a [f32],
    /// coefficient of the sum of squared logsumexp
    pub(crate) z_factor: Option<f32>,
}

/// The gradient of the logits for the gradient `dweights` of the chosen weights.
///
/// # Errors
/// Shape errors and the device's.
pub(crate) fn logit_gradients<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    router: &RouteDims,
    routed: &Routed,
    dweights: &[f32],
    losses: Option<&Losses<'_>>,
) -> Result<Vec<f32>> {
    let dims = RouteBwdDims {
        tokens: router.tokens,
        experts: router.experts,
        top_k: router.top_k,
        sequences: losses.map_or(0, |losses| losses.factors.len()),
        rule: router.rule,
        accumulate: false,
    };
    let (logits, ids) = (rig.put(&routed.logits)?, rig.put(&routed.ids)?);
    let dweights = rig.put(dweights)?;
    let sequences = rig.put(losses.map_or(&[0_u32][..], |losses| losses.sequences))?;
    let counts = rig.put(losses.map_or(&[][..], |losses| losses.counts))?;
    let factors = rig.put(losses.map_or(&[][..], |losses| losses.factors))?;
    let z_factor = losses.and_then(|losses| losses.z_factor);
    let z_factor = rig.put_if(z_factor.as_ref().map(std::slice::from_ref))?;
    let mut dlogits = rig.poisoned::<f32>(routed.logits.len())?;
    let args = RouteBwdArgs {
        logits: whole::<D, f32>(&logits),
        ids: whole::<D, u32>(&ids),
        dweights: whole::<D, f32>(&dweights),
        row_of_slot: None,
        aux: losses.map(|_| Aux {
            sequences: whole::<D, u32>(&sequences),
            counts: whole::<D, u32>(&counts),
            factors: whole::<D, f32>(&factors),
        }),
        z_factor: view_if::<D, f32>(&z_factor),
        load: None,
        dlogits: whole_mut::<D, f32>(&mut dlogits),
    };
    rig.launch::<RouteBwd<T>>(&dims, args)?;
    rig.get::<f32>(&dlogits)
}

/// What [`gate_gradients`] returns.
pub(crate) struct GateGradients<T> {
    /// (tokens, width)
    pub(crate) dx: Vec<T>,
    /// (experts, width)
    pub(crate) dgate: Vec<f32>,
    /// (experts), if the gate has a bias
    pub(crate) dbias: Option<Vec<f32>>,
}

/// The gradients of the router's input, its gate and its gate's bias.
///
/// # Errors
/// Shape errors and the device's.
pub(crate) fn gate_gradients<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    router: &Router<T>,
    x: &[T],
    dlogits: &[f32],
) -> Result<GateGradients<T>> {
    let RouteDims { tokens, width, experts, rule, .. } = router.dims;
    let dims = GateBwdDims { tokens, width, experts, jitter: rule.jitter, accumulate: false };
    let (dlogits, x, gate) = (rig.put(dlogits)?, rig.put(x)?, router.load(rig)?);
    let mut dx = rig.poisoned::<T>(tokens * width)?;
    let mut dgate = rig.poisoned::<f32>(experts * width)?;
    let mut dbias = rig.poisoned::<f32>(experts)?;
    let biased = router.gate_bias.is_some();
    let args = GateBwdArgs {
        dlogits: whole::<D, f32>(&dlogits),
        x: whole::<D, T>(&x),
        gate: gate.weight(),
        stamp: None,
        dx: whole_mut::<D, T>(&mut dx),
        dgate: whole_mut::<D, f32>(&mut dgate),
        dbias: biased.then(|| whole_mut::<D, f32>(&mut dbias)),
    };
    rig.launch::<GateBwd<T>>(&dims, args)?;
    Ok(GateGradients {
        dx: rig.get::<T>(&dx)?,
        dgate: rig.get::<f32>(&dgate)?,
        dbias: if biased { Some(rig.get::<f32>(&dbias)?) } else { None },
    })
}
