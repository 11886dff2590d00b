//! `expert_bias_*`: steps of the selection bias, layer by layer.

use crate::verify::check::Check;
use crate::verify::rig::Rig;
use anyhow::{Result, ensure};
use moe_core::ops::{BiasUpdate, BiasUpdateArgs, BiasUpdateDims};
use moe_core::{MoeDevice, whole, whole_mut};

/// Compares one case.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let [steps, layers, experts] = case.dims("in.counts")?;
    keys.agrees("steps", steps)?;
    keys.agrees("layers", layers)?;
    keys.agrees("num_experts", experts)?;
    keys.required("coeff")?;
    let rate = keys.number("coeff", 0.0)? as f32;
    let initial = keys.number("initial_bias", 0.0)? as f32;
    keys.finish()?;
    ensure!(layers * experts > 0, "there are no experts");
    let counts = case.indices("in.counts", &[steps, layers, experts], u32::MAX)?;
    let mut bias = vec![initial; layers * experts];
    let (mut biases, mut deltas) = (Vec::new(), Vec::new());
    for step in counts.chunks_exact(layers * experts) {
        for (bias, counts) in bias.chunks_exact_mut(experts).zip(step.chunks_exact(experts)) {
            bias.copy_from_slice(&updated(rig, rate, counts, bias)?);
            deltas.extend(updated(rig, rate, counts, &vec![0.0; experts])?);
        }
        biases.extend_from_slice(&bias);
    }
    check.close("out.bias", &biases)?;
    check.close("out.delta", &deltas)?;
    Ok(())
}

/// The bias after one step.
fn updated<D: MoeDevice<f32>>(rig: &Rig<D>, rate: f32, counts: &[u32], bias: &[f32]) -> Result<Vec<f32>> {
    let dims = BiasUpdateDims { experts: bias.len() };
    let (counts, rate, mut bias) = (rig.put(counts)?, rig.put(&[rate])?, rig.put(bias)?);
    let args = BiasUpdateArgs {
        counts: whole::<D, u32>(&counts),
        rate: whole::<D, f32>(&rate),
        bias: whole_mut::<D, f32>(&mut bias),
    };
    rig.launch::<BiasUpdate<f32>>(&dims, args)?;
    rig.get::<f32>(&bias)
}
