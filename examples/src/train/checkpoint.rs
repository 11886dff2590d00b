//! What a run's checkpoints remember beside tensors.
//!
//! A checkpoint is a folder, in the form of [`moe_dist::checkpoint`], written by all ranks and read by any. Tensors: weights under their
//! names, the optimizer's moments, the expert biases, and the run's history (`history.loss`, `history.load`). The
//! text's order is a function of seed and step, so nothing else is needed to go on exactly.

use super::options::Settings;
use anyhow::{Context, Result, anyhow, ensure};
use moe_dist::checkpoint::Checkpoint;
use std::collections::BTreeMap;

/// What the entry `run` of our checkpoints says.
const RUN: &str = "moe-train-2";

/// How far a run has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// what the run is
    pub settings: Settings,
    /// steps of the whole run
    pub steps: u64,
    /// steps done
    pub step: u64,
    /// fingerprint of the text
    pub text: u64,
}

impl Progress {
    /// For a checkpoint's manifest.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let entry = |name: &str, value: String| (name.to_owned(), value);
        BTreeMap::from([
            entry("run", RUN.to_owned()),
            entry("settings", self.settings.to_line()),
            entry("steps", self.steps.to_string()),
            entry("step", self.step.to_string()),
            entry("text", self.text.to_string()),
        ])
    }

    /// From a checkpoint.
    ///
    /// # Errors
    /// If it is no checkpoint of this program.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let entry = |name: &str| {
            let entry = checkpoint.metadata().get(name);
            entry.ok_or_else(|| anyhow!("it is no checkpoint of `train`: it has no entry `{name}`"))
        };
        let number = |name: &str| -> Result<u64> {
            entry(name)?.parse().with_context(|| format!("its entry `{name}` is no number"))
        };
        let run = entry("run")?;
        ensure!(run == RUN, "it is of a `{run}`, but one of a `{RUN}` is wanted");
        Ok(Self {
            settings: Settings::from_line(entry("settings")?)?,
            steps: number("steps")?,
            step: number("step")?,
            text: number("text")?,
        })
    }
}
