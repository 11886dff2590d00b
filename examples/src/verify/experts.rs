//! The group `experts`: rows that are already sorted by expert, through the experts and back.

use super::check::Check;
use super::grouped::run_experts;
use super::rig::Rig;
use super::weights::{Experts, Names, halves_split};
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
    let experts = Experts::<T>::of(case, &keys, "kind")?;
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
    let gradients = WeightGradients {
        w13: &result.dw13,
        b13: Some(&result.db13),
        w2: &result.dw2,
        b2: Some(&result.db2),
    };
    gradients.compare(check, "grad.", &experts)
}

/// Gradients of experts in the library's layout.
pub(crate) struct WeightGradients<'a> {
    /// (experts, 2 hidden, width)
    pub(crate) w13: &'a [f32],
    /// (experts, 2 hidden)
    pub(crate) b13: Option<&'a [f32]>,
    /// (experts, width, hidden)
    pub(crate) w2: &'a [f32],
    /// (experts, width)
    pub(crate) b2: Option<&'a [f32]>,
}

impl WeightGradients<'_> {
    /// Compares them with the tensors of the file, whose names start with `prefix`.
    ///
    /// # Errors
    /// Fixture errors.
    pub(crate) fn compare<T>(&self, check: &mut Check<'_>, prefix: &str, experts: &Experts<T>) -> Result<()> {
        let (hidden, width) = (experts.hidden, experts.width);
        let names = experts.names;
        if names == Names::Separate {
            let (dw1, dw3) = halves_split(self.w13, hidden * width);
            check.close(&format!("{prefix}w1"), &dw1)?;
            check.close(&format!("{prefix}w3"), &dw3)?;
            check.close(&format!("{prefix}w2"), self.w2)?;
            return Ok(());
        }
        let dw13 = names.rows_to_file(self.w13, hidden, width);
        check.close(&format!("{prefix}mlp1_weight"), &dw13)?;
        check.close(&format!("{prefix}mlp2_weight"), self.w2)?;
        if let (Some(b13), Some(b2)) = (self.b13, self.b2) {
            check.close(&format!("{prefix}mlp1_bias"), &names.rows_to_file(b13, hidden, 1))?;
            check.close(&format!("{prefix}mlp2_bias"), b2)?;
        }
        Ok(())
    }
}
