//! The group `experts`: rows that are already sorted by expert, through the experts and back.

use super::check::Check;
use super::grouped::run_experts;
use super::rig::Rig;
use super::routing::PARAM;
use super::weights::Experts;
use anyhow::{Result, ensure};
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
    let [rows, width] = case.dims("in.x")?;
    keys.get("dtype");
    keys.required("kind")?;
    let experts = Experts::<T>::of(case, &keys, PARAM, "kind")?;
    keys.agrees("num_experts", experts.experts)?;
    keys.agrees("dim", experts.width)?;
    keys.agrees("hidden_dim", experts.hidden)?;
    let counts = case.indices("in.counts", &[experts.experts], u32::try_from(rows)?)?;
    let stated = keys.sizes("counts")?;
    keys.finish()?;
    let agree = stated.iter().copied().eq(counts.iter().map(|count| *count as usize));
    ensure!(agree, "config.counts is not `in.counts`");
    let mut offsets = vec![0_u32];
    for count in &counts {
        offsets.push(offsets[offsets.len() - 1].saturating_add(*count));
    }
    let sum = offsets[experts.experts] as usize;
    ensure!(sum == rows, "the counts add up to {sum}, but there are {rows} rows");
    let x = case.scalars::<T>("in.x", &[rows, experts.width])?;
    let dout = case.scalars::<T>("in.g", &[rows, width])?;

    let result = run_experts(rig, &experts, &offsets, &x, &dout)?;
    check.close("out.y", &result.y)?;
    check.close("grad.x", &result.dx)?;
    let b13 = experts.b13.as_ref().map(|_| &result.db13[..]);
    let b2 = experts.b2.as_ref().map(|_| &result.db2[..]);
    for (name, values) in experts.names.tensors(&experts, &result.dw13, b13, &result.dw2, b2) {
        check.close(&format!("grad.{name}"), &values)?;
    }
    Ok(())
}
