//! The group `router`: logits, scores, ids and weights of each token, and the gradients of input and gate.

use super::check::Check;
use super::gradient::{gate_gradients, logit_gradients};
use super::moving::sort;
use super::rig::Rig;
use super::routing::{PARAM, Router};
use anyhow::Result;
use moe_core::{MoeDevice, Scalar};

/// Compares one case.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<T: Scalar<Acc = f32>, D: MoeDevice<T>>(
    rig: &Rig<D>,
    check: &mut Check<'_>,
) -> Result<()> {
    let (case, keys) = (check.case, check.case.keys());
    let [tokens, width] = case.dims("in.x")?;
    keys.agrees("T", tokens)?;
    keys.agrees("D", width)?;
    keys.get("dtype");
    let router = Router::<T>::of(case, &keys, PARAM, tokens)?;
    keys.finish()?;
    let x = case.scalars::<T>("in.x", &[tokens, router.dims.width])?;
    let upstream = case.floats("in.R", &[tokens, router.dims.top_k])?;

    let routed = router.route(rig, &x)?;
    check.same("out.topk_ids", &routed.ids)?;
    check.close("out.topk_scores", &routed.weights)?;
    check.close_if_any("out.logits", &routed.logits)?;
    check.close_if_any("out.scores", &router.scores(rig, &x)?)?;
    check.same("out.counts", &sort::<T, D>(rig, &routed.ids, router.dims.experts)?.counts)?;

    let dlogits = logit_gradients::<T, D>(rig, &router.dims, &routed, &upstream, None)?;
    let gate = gate_gradients(rig, &router, &x, &dlogits)?;
    check.close_if_any("grad.x", &gate.dx)?;
    check.close_if_any("grad.gate.weight", &gate.dgate)?;
    if let Some(dbias) = &gate.dbias {
        check.close_if_any("grad.gate.bias", dbias)?;
    }
    Ok(())
}
