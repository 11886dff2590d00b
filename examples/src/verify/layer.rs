//! The group `layer`: a whole layer through the runner, forward and back, under both memory policies.

use super::check::Check;
use super::layer_run::{Call, LayerRun, run_layer};
use super::layer_spec::{LayerSpec, named};
use super::rig::Rig;
use super::routing::PARAM;
use anyhow::Result;
use moe_core::{MemoryPolicy, MoeDevice, Scalar};

/// Compares one case.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    check: &mut Check<'_>,
) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let [tokens, _] = case.dims("in.x")?;
    let spec = LayerSpec::<T>::of(case, &keys, PARAM, tokens)?;
    keys.get("dtype");
    let (sequences, length) = (keys.size_if_any("B")?, keys.size_if_any("L")?);
    if let (Some(sequences), Some(length)) = (sequences, length) {
        anyhow::ensure!(sequences * length == tokens, "B * L is not {tokens}");
    }
    keys.finish()?;
    compare_whole(rig, check, &spec, tokens)
}

/// Runs the layer on all tokens of the case and compares its outputs and gradients with `out.*` and `grad.*`.
///
/// # Errors
/// Fixture errors and the library's.
pub(crate) fn compare_whole<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    check: &mut Check<'_>,
    spec: &LayerSpec<T>,
    tokens: usize,
) -> Result<()> {
    let case = check.case;
    let shape = [tokens, spec.experts.width];
    let (x, dout) = (case.scalars::<T>("in.x", &shape)?, case.scalars::<T>("in.g", &shape)?);
    let sequences = spec.sequences(tokens)?;
    let call = Call { x: &x, dout: &dout, sequences: &sequences, first_token: 0 };
    for memory in [MemoryPolicy::Keep, MemoryPolicy::Recompute] {
        let run = run_layer(rig.device(), spec, memory, &call)?;
        compare_outputs(check, &run)?;
        compare_gradients(check, spec, &run)?;
    }
    check.close_if_any("out.scores", &spec.router.scores(rig, &x)?)?;
    if case.find("out.routed").is_some() {
        let routed = LayerSpec { shared: None, shared_gate: None, ..spec.clone() };
        let run = run_layer(rig.device(), &routed, MemoryPolicy::Keep, &call)?;
        check.close("out.routed", &run.y)?;
    }
    Ok(())
}

fn compare_outputs<T: Scalar<Acc = f32>>(check: &mut Check<'_>, run: &LayerRun<T>) -> Result<()> {
    check.same("out.topk_ids", &run.ids)?;
    check.close("out.topk_scores", &run.weights)?;
    check.same("out.counts", &run.counts)?;
    check.close("out.y", &run.y)?;
    check.close("out.y", &run.inference)?;
    check.close_if_any("out.logits", &run.logits)?;
    check.close_if_any("out.aux_loss", &[run.balance_loss])?;
    check.close_if_any("out.z_loss", &[run.z_loss])?;
    if let Some(shared) = &run.shared {
        check.close_if_any("out.shared", shared)?;
    }
    Ok(())
}

fn compare_gradients<T: Scalar<Acc = f32>>(
    check: &mut Check<'_>,
    spec: &LayerSpec<T>,
    run: &LayerRun<T>,
) -> Result<()> {
    check.close("grad.x", &run.dx)?;
    for (name, values) in named(spec, &run.gradients)? {
        check.close(&format!("grad.{name}"), &values)?;
    }
    Ok(())
}
