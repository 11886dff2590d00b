//! The group `train`: optimizer steps of a small language model, compared step by step.
//!
//! `x = embed[token]`; per layer `x = x + moe(rms(x) * w)`; `logits = (rms(x) * w) head^T`; the mean cross-entropy of all tokens,
//! plus the layers' auxiliary losses. The layers run on the device, the dense parts around them on the host.

mod options;

use super::check::Check;
use super::rig::Rig;
use crate::fixture::{Case, FixtureError, Metric, Tolerances};
use crate::model::replay::{Replay, ReplayStep};
use anyhow::Result;
use moe_core::MoeDevice;
use moe_core::ndarray::ArrayView2;
use options::Options;
use serde_json::Value;

/// Values of every step, as they stand in the file: steps first, then layers.
#[derive(Default)]
struct History {
    loss: Vec<f32>,
    grad_norm: Vec<f32>,
    aux: Vec<f32>,
    z: Vec<f32>,
    counts: Vec<u32>,
    bias: Vec<f32>,
}

impl History {
    fn add(&mut self, step: &ReplayStep) {
        self.loss.push(step.loss as f32);
        self.grad_norm.push(step.grad_norm as f32);
        self.aux.extend(step.balance_loss.iter().map(|loss| *loss as f32));
        self.z.extend(step.z_loss.iter().map(|loss| *loss as f32));
        self.counts.extend(step.counts.iter().flatten());
        self.bias.extend(step.bias.iter().flatten().map(|bias| *bias as f32));
    }
}

const RELATIVE: Metric = Metric::Relative { floor: 1e-6 };

/// Compares one case.
///
/// # Errors
/// What keeps the case from being compared.
pub(crate) fn check<D: MoeDevice<f32>>(rig: &Rig<D>, check: &mut Check<'_>) -> Result<()> {
    let case = check.case;
    let options = Options::of(case)?;
    let [steps, sequences, row] = case.dims("in.tokens")?;
    let largest = u32::try_from(options.vocabulary - 1)?;
    let tokens = case.indices("in.tokens", &[steps, sequences, row], largest)?;
    let tokens: Vec<u8> = tokens.into_iter().map(u8::try_from).collect::<Result<_, _>>()?;
    let (config, mut weights) = (options.replay()?, options.weights(case)?);
    let mut replay = Replay::new::<D, f32>(rig.device(), &config, &mut weights)?;
    weights.expect_empty()?;
    let mut history = History::default();
    for (at, batch) in tokens.chunks_exact(sequences * row).enumerate() {
        let rows = ArrayView2::from_shape((sequences, row), batch)?;
        let mut step = replay.step(&rows.to_owned())?;
        if at == 0 {
            let (metric, tolerance) = stated(case, "grad0")?;
            for (name, values) in options.named(&mut step.gradients)? {
                check.within(&format!("grad0.{name}"), &values, metric, tolerance)?;
            }
        }
        history.add(&step);
    }

    let of = |key: &str| stated(case, key);
    let ((metric, loss), (aux_metric, aux), (bias_metric, of_bias)) = (of("loss")?, of("aux")?, of("bias")?);
    check.within("out.loss", &history.loss, metric, loss)?;
    // The norm has no tolerance of its own, and no natural size.
    check.within("out.grad_norm", &history.grad_norm, RELATIVE, loss)?;
    check.within("out.aux", &history.aux, aux_metric, aux)?;
    if case.find("out.z").is_some() {
        check.within("out.z", &history.z, aux_metric, aux)?;
    }
    check.same("out.counts", &history.counts)?;
    check.within("out.bias", &history.bias, bias_metric, of_bias)?;
    let last = history.bias.len() - history.bias.len() / steps;
    check.within("out.final_bias", &history.bias[last..], bias_metric, of_bias)?;
    let (metric, tolerance) = of("final")?;
    for (name, values) in options.named(&mut replay.state()?)? {
        check.within(&format!("final.{name}"), &values, metric, tolerance)?;
    }
    Ok(())
}

/// The tolerances as a whole; every comparison of this group states its own.
///
/// # Errors
/// [`FixtureError`] if one is missing.
pub(crate) fn tolerances(case: &Case) -> Result<Tolerances, FixtureError> {
    let ((metric, out), (_, grad)) = (stated(case, "loss")?, stated(case, "grad0")?);
    Ok(Tolerances { out, grad, metric })
}

/// The tolerance for `key`: a number in the file's metric, or `METRIC NUMBER` with a remark behind it.
fn stated(case: &Case, key: &str) -> Result<(Metric, f64), FixtureError> {
    let entry = |name: &str| match case.entry("tolerances").and_then(|entry| entry.get(name)) {
        Some(value) => Ok(value),
        None => Err(FixtureError::MissingKey(format!("tolerances.{name}"))),
    };
    let metric = |name: &str| match name {
        "nmax" => Some(RELATIVE),
        "max_abs" => Some(Metric::Absolute),
        _ => None,
    };
    let value = entry(key)?;
    let read = || match value {
        Value::String(text) => {
            let mut words = text.split_whitespace();
            Some((metric(words.next()?)?, words.next()?.parse().ok()?))
        }
        _ => Some((metric(entry("metric").ok()?.as_str()?)?, value.as_f64()?)),
    };
    read().filter(|(_, number): &(Metric, f64)| (0.0..1.0).contains(number)).ok_or_else(|| {
        FixtureError::WrongKey {
            key: format!("tolerances.{key}"),
            wanted: "must be a number from 0 to 1, or nmax or max_abs and a number".to_owned(),
            got: value.to_string(),
        }
    })
}
