//! A run: model, text and history, one step at a time.

use super::checkpoint::Checkpoint;
use super::history::History;
use super::options::{BalanceName, Settings};
use super::schedule;
use crate::device::DeviceName;
use crate::model::device_blocks::BlocksConfig;
use crate::model::storage::MakeBlocks;
use crate::model::{Model, ModelConfig, VOCABULARY};
use crate::text::Text;
use anyhow::{Result, ensure};
use moe_core::{AdamWOptions, Balance, BalanceLoss, Figures, MoeConfig, Sizes};
use std::time::Instant;

/// Added to mean squares in norms.
const NORM_EPSILON: f64 = 1e-5;
/// Step of the selection bias, and coefficient of auxiliary losses, if none are given.
const BIAS_RATE: f32 = 5e-3;
const LOSS_RATE: f32 = 1e-2;

/// Where a run's layers run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceChoice {
    /// the device
    pub name: DeviceName,
    /// its threads, if it has any; 0 for one per core
    pub threads: usize,
}

/// A run that can take its next step.
pub struct Run {
    settings: Settings,
    steps: u64,
    text: Text,
    model: Model<f32>,
    history: History,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// number of the step, from 1
    pub step: u64,
    /// mean cross-entropy in nats
    pub loss: f64,
    /// norm of all gradients together, before clipping
    pub grad_norm: f64,
    /// bytes of the batch per second of the step
    pub tokens_per_second: f64,
    /// what routing did, layer by layer
    pub figures: Vec<Figures>,
}

impl StepReport {
    /// The largest of the layers.
    pub fn max_violation(&self) -> f64 {
        self.figures.iter().map(|figures| figures.max_violation).fold(0.0, f64::max)
    }

    /// The smallest of the layers.
    pub fn load_entropy(&self) -> f64 {
        self.figures.iter().map(|figures| figures.load_entropy).fold(1.0, f64::min)
    }

    /// The sum over the layers.
    pub fn dropped(&self) -> u64 {
        self.figures.iter().map(|figures| figures.dropped).sum()
    }
}

impl Run {
    /// A run before its first step.
    ///
    /// # Errors
    /// If settings are out of range, the text is too short, or the device fails.
    pub fn start(settings: Settings, steps: u64, text: Text, device: DeviceChoice) -> Result<Self> {
        settings.check()?;
        ensure!(steps > 0, "--steps is 0, but must be at least 1");
        text.check_length(settings.seq)?;
        let moe = moe_config(&settings)?;
        let blocks = BlocksConfig {
            moe,
            layers: settings.layers,
            max_tokens: settings.batch * settings.seq,
            max_sequences: settings.batch,
            seed: settings.seed,
            adam: AdamWOptions::default(),
        };
        let dense = ModelConfig {
            vocabulary: VOCABULARY,
            layers: settings.layers,
            width: settings.width,
            mixing: !settings.no_mixing,
            epsilon: NORM_EPSILON,
            adam: AdamWOptions::default(),
        };
        let task = MakeBlocks { storage: settings.dtype, config: &blocks };
        let blocks = device.name.open_with(device.threads, task)??;
        let model = Model::init(&dense, settings.seed, blocks);
        let history = History::new(settings.layers, settings.experts);
        Ok(Self { settings, steps, text, model, history })
    }

    /// Goes on where a checkpoint ends, with its settings; `steps` may change how long the run is.
    ///
    /// # Errors
    /// If the checkpoint does not fit the text or itself, or the device fails.
    pub fn resume(
        checkpoint: Checkpoint,
        steps: Option<u64>,
        text: Text,
        device: DeviceChoice,
    ) -> Result<Self> {
        let Checkpoint { settings, step, mut tensors, .. } = checkpoint;
        ensure!(
            checkpoint.text == text.fingerprint(),
            "the checkpoint was trained on another text: give that one with --text"
        );
        let steps = steps.unwrap_or(checkpoint.steps);
        ensure!(step <= steps, "the checkpoint has {step} steps already, more than --steps {steps}");
        let mut run = Self::start(settings, steps, text, device)?;
        let done = usize::try_from(step)?;
        run.history = History::load(run.settings.layers, run.settings.experts, done, &mut tensors)?;
        run.model.load_state(&mut tensors, step)?;
        tensors.expect_empty()?;
        Ok(run)
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.model.step()
    }

    /// What the run is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The text that is learned.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// What happened so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The next step: forward, backward, clipping, balancing, update.
    ///
    /// # Errors
    /// If the loss is not finite, or the device fails.
    pub fn step(&mut self) -> Result<StepReport> {
        let start = Instant::now();
        let (settings, step) = (&self.settings, self.model.step());
        let batch = self.text.batch(settings.seed, step, settings.batch, settings.seq);
        let loss = self.model.forward_backward(&batch)?;
        let grad_norm = self.model.grad_norm()?;
        ensure!(
            loss.is_finite() && grad_norm.is_finite(),
            "loss {loss}, gradient norm {grad_norm} in step {}: the run has diverged; try a smaller --lr",
            step + 1
        );
        let clipped = settings.clip > 0.0 && grad_norm > settings.clip;
        let scale = if clipped { settings.clip / (grad_norm + 1e-6) } else { 1.0 };
        let figures = self.model.figures()?;
        self.model.update(settings.lr * schedule::rate(step, self.steps), scale)?;
        self.history.push(loss, &figures);
        let tokens_per_second = batch.tokens() as f64 / start.elapsed().as_secs_f64();
        Ok(StepReport { step: step + 1, loss, grad_norm, tokens_per_second, figures })
    }

    /// The mean loss over the held-out part, in bits per byte.
    ///
    /// # Errors
    /// If the device fails.
    pub fn held_out(&mut self) -> Result<f64> {
        let (mut nats, mut tokens) = (0.0, 0);
        for batch in self.text.held_out_batches(self.settings.batch, self.settings.seq) {
            nats += self.model.loss(&batch)? * batch.tokens() as f64;
            tokens += batch.tokens();
        }
        Ok(nats / tokens as f64 / std::f64::consts::LN_2)
    }

    /// The run as it is now.
    ///
    /// # Errors
    /// If the device fails.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let mut tensors = self.model.state()?;
        self.history.save(&mut tensors);
        Ok(Checkpoint {
            settings: self.settings.clone(),
            steps: self.steps,
            step: self.model.step(),
            text: self.text.fingerprint(),
            tensors,
        })
    }
}

/// The description of the MoE layers.
fn moe_config(settings: &Settings) -> Result<MoeConfig> {
    let Settings { width, hidden, experts, top_k, .. } = *settings;
    let mut config = MoeConfig::new(Sizes { width, hidden, experts, top_k })?;
    let rate = |default| settings.balance_rate.unwrap_or(default);
    config.rule.gate = settings.gate.into();
    config.selection_bias = settings.balance == BalanceName::Bias;
    config.balance = match settings.balance {
        BalanceName::Bias => Balance { bias_rate: rate(BIAS_RATE), ..Balance::default() },
        BalanceName::Sequence => {
            Balance { loss: Some(BalanceLoss::Sequence(rate(LOSS_RATE))), ..Balance::default() }
        }
        BalanceName::Batch => {
            Balance { loss: Some(BalanceLoss::Batch(rate(LOSS_RATE))), ..Balance::default() }
        }
        BalanceName::None => Balance::default(),
    };
    config.validate()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: DeviceChoice = DeviceChoice { name: DeviceName::Host, threads: 0 };
    const STEPS: u64 = 8;

    fn start(line: &str) -> Run {
        let small = "--width 8 --hidden 8 --experts 4 --batch 2 --seq 8";
        let settings = Settings::from_line(&format!("{small} {line}")).unwrap();
        Run::start(settings, STEPS, Text::embedded(), HOST).unwrap()
    }

    fn losses(run: &mut Run, steps: u64) -> Vec<f64> {
        (0..steps).map(|_| run.step().unwrap().loss).collect()
    }

    #[test]
    fn a_resumed_run_has_the_losses_of_an_unbroken_one() {
        for line in
            ["", "--dtype bf16", "--balance sequence", "--balance batch --no-mixing", "--balance none"]
        {
            let mut unbroken = start(line);
            let wanted = losses(&mut unbroken, STEPS);
            let mut broken = start(line);
            let mut got = losses(&mut broken, 3);
            let checkpoint = broken.checkpoint().unwrap();
            let mut resumed = Run::resume(checkpoint, None, Text::embedded(), HOST).unwrap();
            got.extend(losses(&mut resumed, STEPS - 3));
            assert_eq!(got, wanted, "{line}");
            assert_eq!(resumed.history(), unbroken.history(), "{line}");
            assert_eq!(resumed.checkpoint().unwrap(), unbroken.checkpoint().unwrap(), "{line}");
        }
    }

    #[test]
    fn evaluation_changes_nothing() {
        let (mut watched, mut plain) = (start(""), start(""));
        losses(&mut watched, 2);
        losses(&mut plain, 2);
        let batch = watched.text.batch(0, 0, 2, 8);
        watched.model.loss(&batch).unwrap();
        assert_eq!(watched.checkpoint().unwrap(), plain.checkpoint().unwrap());
        assert_eq!(losses(&mut watched, 2), losses(&mut plain, 2));
    }

    #[test]
    fn another_text_or_a_damaged_state_is_refused() {
        let checkpoint = start("").checkpoint().unwrap();
        let resume = |checkpoint| Run::resume(checkpoint, None, Text::embedded(), HOST).map(|_| ());
        let other_text = Checkpoint { text: 1, ..checkpoint.clone() };
        assert!(resume(other_text).unwrap_err().to_string().contains("another text"));
        let other_size = Checkpoint { settings: start("--no-mixing").settings, ..checkpoint.clone() };
        assert!(resume(other_size).is_err());
        let other_step = Checkpoint { step: 5, ..checkpoint.clone() };
        assert!(resume(other_step).unwrap_err().to_string().contains("history.loss"));
        let mut missing = checkpoint;
        missing.tensors.take_all("layers.1.moe.w2");
        assert!(resume(missing).unwrap_err().to_string().contains("w2"));
    }

    #[test]
    fn flags_that_do_not_fit_are_named() {
        for (line, word) in
            [("--top-k 9", "top_k"), ("--experts 0", "experts"), ("--balance-rate=-1", "rate")]
        {
            let settings = Settings::from_line(line).unwrap();
            let error = Run::start(settings, STEPS, Text::embedded(), HOST).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
