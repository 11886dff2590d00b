//! A run: model, text and history, one step at a time.

use super::checkpoint::Progress;
use super::history::History;
use super::options::{BalanceName, Settings};
use super::schedule;
use crate::device::DeviceName;
use crate::model::device_blocks::BlocksConfig;
use crate::model::storage::MakeBlocks;
use crate::model::{Model, ModelConfig, VOCABULARY};
use crate::ranks::Ranks;
use crate::text::Text;
use anyhow::{Result, ensure};
use moe_core::{AdamWOptions, Balance, BalanceLoss, Figures, Host, MoeConfig, SharedExperts, Sizes};
use moe_dist::Group;
use moe_dist::checkpoint::{self, Checkpoint, Piece};
use moe_dist::mesh::Span;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Added to mean squares in norms.
const NORM_EPSILON: f64 = 1e-5;
/// Step of the selection bias, and coefficient of auxiliary losses, if none are given.
const BIAS_RATE: f32 = 5e-3;
const LOSS_RATE: f32 = 1e-2;

/// Where a run's layers run.
#[derive(Clone, Debug)]
pub struct Place {
    /// the device
    pub device: DeviceName,
    /// its threads, if it has any; 0 for one per core
    pub threads: usize,
    /// the ranks
    pub ranks: Arc<Ranks>,
    /// whether ranks keep shards of the layers' parameters
    pub sharded: bool,
}

/// A run that can take its next step.
pub struct Run {
    settings: Settings,
    steps: u64,
    text: Text,
    model: Model<f32>,
    history: History,
    ranks: Arc<Ranks>,
    /// all ranks, for checkpoints
    world: Group<Host>,
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
    pub fn start(settings: Settings, steps: u64, text: Text, place: &Place) -> Result<Self> {
        settings.check()?;
        ensure!(steps > 0, "--steps is 0, but must be at least 1");
        text.check_length(settings.seq)?;
        let moe = moe_config(&settings)?;
        let Place { ranks, sharded, .. } = place;
        let most = ranks.most(settings.batch);
        let blocks = BlocksConfig {
            moe,
            layers: settings.layers,
            max_tokens: most * ranks.longest(settings.seq),
            max_sequences: most,
            seed: settings.seed,
            adam: AdamWOptions::default(),
            sharded: *sharded,
        };
        let dense = ModelConfig {
            vocabulary: VOCABULARY,
            layers: settings.layers,
            width: settings.width,
            mixing: !settings.no_mixing,
            epsilon: NORM_EPSILON,
            adam: AdamWOptions::default(),
        };
        let task = MakeBlocks { storage: settings.dtype, config: &blocks, ranks };
        let blocks = place.device.open_with(place.threads, task)??;
        let model = Model::init(&dense, settings.seed, blocks, ranks)?;
        let history = History::new(settings.layers, settings.experts);
        let world = ranks.group(&Host, Span::World)?;
        Ok(Self { settings, steps, text, model, history, ranks: Arc::clone(ranks), world })
    }

    /// Goes on where a checkpoint ends, with its settings; `steps` may change how long the run is.
    ///
    /// # Errors
    /// If the checkpoint is damaged, or does not fit the text or itself, or the device fails.
    pub fn resume(
        checkpoint: &mut Checkpoint,
        steps: Option<u64>,
        text: Text,
        place: &Place,
    ) -> Result<Self> {
        let Progress { settings, steps: planned, step, text: fingerprint } = Progress::of(checkpoint)?;
        ensure!(
            fingerprint == text.fingerprint(),
            "the checkpoint was trained on another text: give that one with --text"
        );
        let steps = steps.unwrap_or(planned);
        ensure!(step <= steps, "the checkpoint has {step} steps already, more than --steps {steps}");
        let mut run = Self::start(settings, steps, text, place)?;
        let done = usize::try_from(step)?;
        run.history = History::load(run.settings.layers, run.settings.experts, done, checkpoint)?;
        run.model.load(checkpoint, step)?;
        checkpoint.expect_all_read()?;
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
        let share = batch.share(self.ranks.share(settings.batch));
        let loss = self.model.forward_backward(&share)?;
        self.model.reduce()?;
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
        let tokens_per_second = batch.step_tokens() as f64 / start.elapsed().as_secs_f64();
        Ok(StepReport { step: step + 1, loss, grad_norm, tokens_per_second, figures })
    }

    /// The mean loss over the held-out part, in bits per byte.
    ///
    /// # Errors
    /// If the device fails.
    pub fn held_out(&mut self) -> Result<f64> {
        let (mut nats, mut tokens) = (0.0, 0);
        for batch in self.text.held_out_batches(self.settings.batch, self.settings.seq) {
            let share = batch.share(self.ranks.share(batch.step_sequences));
            nats += self.model.loss(&share)? * batch.step_tokens() as f64;
            tokens += batch.step_tokens();
        }
        Ok(nats / tokens as f64 / std::f64::consts::LN_2)
    }

    /// Bytes of all layers' gates, which are equal on all ranks.
    ///
    /// # Errors
    /// If the device fails.
    pub fn gates(&mut self) -> Result<Vec<Vec<u8>>> {
        self.model.blocks().gates()
    }

    /// What this rank keeps of the run as it is now.
    ///
    /// # Errors
    /// If the device fails.
    pub fn pieces(&mut self) -> Result<Vec<Piece>> {
        let mut pieces = self.model.pieces()?;
        if self.ranks.is_first() {
            pieces.extend(self.history.pieces());
        }
        Ok(pieces)
    }

    /// Writes a checkpoint, with all other ranks.
    ///
    /// # Errors
    /// If a rank cannot write its part.
    pub fn save(&mut self, folder: &Path) -> Result<()> {
        let progress = Progress {
            settings: self.settings.clone(),
            steps: self.steps,
            step: self.model.step(),
            text: self.text.fingerprint(),
        };
        let pieces = self.pieces()?;
        Ok(checkpoint::write(folder, &mut self.world, &pieces, &progress.to_metadata())?)
    }
}

/// The description of the MoE layers.
fn moe_config(settings: &Settings) -> Result<MoeConfig> {
    let Settings { width, hidden, experts, top_k, .. } = *settings;
    let mut config = MoeConfig::new(Sizes { width, hidden, experts, top_k })?;
    config.shared = (settings.shared > 0).then_some(SharedExperts { hidden: settings.shared, gated: false });
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

    const STEPS: u64 = 8;

    fn here() -> Place {
        let ranks = Arc::new(Ranks::alone().unwrap());
        Place { device: DeviceName::Host, threads: 0, ranks, sharded: false }
    }

    fn start(line: &str) -> Run {
        let small = "--width 8 --hidden 8 --experts 4 --batch 2 --seq 8";
        let settings = Settings::from_line(&format!("{small} {line}")).unwrap();
        Run::start(settings, STEPS, Text::embedded(), &here()).unwrap()
    }

    /// A folder that is gone afterwards.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("moe-run-{name}-{}", std::process::id())))
        }

        fn resume(&self) -> Result<Run> {
            Run::resume(&mut Checkpoint::open(&self.0)?, None, Text::embedded(), &here())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
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
            let folder = Folder::new("resumed");
            broken.save(&folder.0).unwrap();
            let mut resumed = folder.resume().unwrap();
            got.extend(losses(&mut resumed, STEPS - 3));
            assert_eq!(got, wanted, "{line}");
            assert_eq!(resumed.history(), unbroken.history(), "{line}");
            assert!(resumed.pieces().unwrap() == unbroken.pieces().unwrap(), "{line}");
        }
    }

    #[test]
    fn evaluation_changes_nothing() {
        let (mut watched, mut plain) = (start(""), start(""));
        losses(&mut watched, 2);
        losses(&mut plain, 2);
        let batch = watched.text.batch(0, 0, 2, 8);
        watched.model.loss(&batch).unwrap();
        assert!(watched.pieces().unwrap() == plain.pieces().unwrap());
        assert_eq!(losses(&mut watched, 2), losses(&mut plain, 2));
    }

    #[test]
    fn another_text_or_a_damaged_state_is_refused() {
        let mut run = start("");
        let (folder, pieces) = (Folder::new("refused"), run.pieces().unwrap());
        let progress =
            Progress { settings: run.settings.clone(), steps: STEPS, step: 0, text: run.text.fingerprint() };
        let mut refusal = |progress: Progress, pieces: &[Piece]| {
            checkpoint::write(&folder.0, &mut run.world, pieces, &progress.to_metadata()).unwrap();
            folder.resume().map(|_| ()).unwrap_err().to_string()
        };
        let other_text = Progress { text: 1, ..progress.clone() };
        assert!(refusal(other_text, &pieces).contains("another text"));
        let other_size = Progress { settings: start("--no-mixing").settings, ..progress.clone() };
        assert!(refusal(other_size, &pieces).contains("is no tensor of this model"));
        let other_step = Progress { step: 5, ..progress.clone() };
        assert!(refusal(other_step, &pieces).contains("history.loss"));
        let missing: Vec<Piece> =
            pieces.iter().filter(|piece| piece.tensor.name != "layers.1.moe.w2").cloned().collect();
        assert!(refusal(progress, &missing).contains("layers.1.moe.w2"));
    }

    #[test]
    fn flags_that_do_not_fit_are_named() {
        for (line, word) in
            [("--top-k 9", "top_k"), ("--experts 0", "experts"), ("--balance-rate=-1", "rate")]
        {
            let settings = Settings::from_line(line).unwrap();
            let error = Run::start(settings, STEPS, Text::embedded(), &here()).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
