//! The command line of `train`.

use crate::device::DeviceName;
use crate::gate::GateName;
use crate::model::storage::Storage;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, ValueEnum};
use moe_dist::mesh::Degrees;
use std::path::PathBuf;

/// Trains a small byte-level language model whose blocks are Mixture-of-Experts layers.
#[derive(Clone, Debug, Parser)]
#[command(name = "train", version)]
pub struct Options {
    /// what the run is
    #[command(flatten)]
    pub settings: Settings,

    /// Steps of the whole run [default: 600, or the resumed run's]
    #[arg(long)]
    pub steps: Option<u64>,

    /// Text to learn, any bytes [default: Jane Austen, Pride and Prejudice]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,

    /// Where the MoE layers run: host, cpu, cuda or cuda:N, opencl or opencl:PLATFORM or opencl:PLATFORM:DEVICE
    #[arg(long, default_value_t)]
    pub device: DeviceName,

    /// Threads for the dense parts, and for the device if it is a CPU [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,

    /// Folder for checkpoints and the picture
    #[arg(long, value_name = "DIR", default_value = "runs/train")]
    pub out: PathBuf,

    /// Steps between checkpoints; the last step always writes one
    #[arg(long, default_value_t = 200)]
    pub save_every: u64,

    /// Goes on from a checkpoint, with the settings in it. `--text` must be given again if it was. The ranks may be
    /// others than those that wrote it
    #[arg(long, value_name = "DIR", conflicts_with = "Settings")]
    pub resume: Option<PathBuf>,

    /// the ranks of the run
    #[command(flatten)]
    pub layout: Layout,
}

/// How a run is spread over ranks. The same run on other ranks differs by rounding alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct Layout {
    /// Starts this many processes on this machine, which train together. Without it, what torchrun, mpirun or Slurm have
    /// put into the environment is followed
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,

    /// Replicas of the ranks of dp-shard
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub dp_replicate: usize,

    /// Ranks with other sequences of a batch [default: what is left]
    #[arg(long, value_name = "N")]
    pub dp_shard: Option<usize>,

    /// Ranks with other parts of the same sequences
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub cp: usize,

    /// Ranks with the same sequences, and parts of the hidden width of shared experts
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub tp: usize,

    /// Ranks of tp have different tokens outside the MoE layers (sequence parallelism)
    #[arg(long)]
    pub sequence_parallel: bool,

    /// Ranks with other experts
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub ep: usize,

    /// Ranks with other parts of an expert's hidden width: 1 or tp
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub etp: usize,

    /// Ranks keep shards of the MoE layers' parameters and of their optimizer (FSDP; HSDP with dp-replicate)
    #[arg(long)]
    pub fsdp: bool,
}

impl Layout {
    /// The degrees of a world of this many ranks.
    pub fn degrees(&self, world: usize) -> Degrees {
        let Self { dp_replicate, cp, tp, ep, etp, .. } = *self;
        let rest = dp_replicate.saturating_mul(cp).saturating_mul(tp).max(1);
        let dp_shard = self.dp_shard.unwrap_or((world / rest).max(1));
        Degrees { dp_replicate, dp_shard, cp, tp, ep, etp }
    }
}

/// What a run is. A checkpoint holds these, and a resumed run keeps them.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct Settings {
    /// Layers of the model
    #[arg(long, default_value_t = 2)]
    pub layers: usize,

    /// Width of the model
    #[arg(long, default_value_t = 64)]
    pub width: usize,

    /// Hidden width of an expert
    #[arg(long, default_value_t = 64)]
    pub hidden: usize,

    /// Experts of a layer
    #[arg(long, default_value_t = 8)]
    pub experts: usize,

    /// Experts that each token visits
    #[arg(long, default_value_t = 2)]
    pub top_k: usize,

    /// Hidden width of a shared expert, which every token visits; 0 for none
    #[arg(long, default_value_t = 0)]
    pub shared: usize,

    /// Leave out the mixing over the past: every byte is predicted from the one before it
    #[arg(long)]
    pub no_mixing: bool,

    /// Sequences in a batch
    #[arg(long, default_value_t = 16)]
    pub batch: usize,

    /// Bytes of a sequence
    #[arg(long, default_value_t = 128)]
    pub seq: usize,

    /// Largest learning rate: reached after a warm-up of 200 steps, then falling to a tenth along a cosine
    #[arg(long, default_value_t = 8e-3)]
    pub lr: f64,

    /// Largest norm of the gradient; longer ones are scaled down to it. 0 for no limit
    #[arg(long, default_value_t = 1.0)]
    pub clip: f64,

    /// What keeps the load of the experts even
    #[arg(long, value_enum, default_value_t)]
    pub balance: BalanceName,

    /// Strength of the balancing: the step of the bias, or the coefficient of the loss
    /// [default: 0.005 for bias, 0.01 for sequence and batch]
    #[arg(long)]
    pub balance_rate: Option<f32>,

    /// Type that the MoE layers store weights and activations in
    #[arg(long, value_enum, default_value_t)]
    pub dtype: Storage,

    /// How the gate's logits are computed
    #[arg(long, value_enum, default_value_t)]
    pub gate: GateName,

    /// Seed of the weights and of the order of the text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// A way to keep the load of the experts even.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BalanceName {
    /// A bias on the selection, moved after each step (loss-free)
    #[default]
    Bias,
    /// An auxiliary loss per sequence
    Sequence,
    /// An auxiliary loss over the whole batch
    Batch,
    /// Nothing
    None,
}

/// Most of anything that multiplies memory. Far above what is useful here, far below overflow.
const LARGEST: usize = 1 << 13;

impl Settings {
    /// Checks what the layer's own configuration does not.
    ///
    /// # Errors
    /// The first flag that is outside its range, with the range.
    pub fn check(&self) -> Result<()> {
        let counts =
            [("layers", self.layers), ("width", self.width), ("batch", self.batch), ("seq", self.seq)];
        for (name, value) in counts {
            ensure!((1..=LARGEST).contains(&value), "--{name} is {value}, but must be 1 to {LARGEST}");
        }
        ensure!(self.lr > 0.0 && self.lr.is_finite(), "--lr is {}, but must be above 0", self.lr);
        ensure!(self.clip >= 0.0 && self.clip.is_finite(), "--clip is {}, but must be at least 0", self.clip);
        let tokens = self.batch * self.seq;
        ensure!(tokens <= 1 << 20, "--batch times --seq is {tokens}, but must be at most {}", 1 << 20);
        Ok(())
    }

    /// The settings as a command line, for a checkpoint.
    pub fn to_line(&self) -> String {
        let mut words = Vec::new();
        let mut flag = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        flag("layers", self.layers.to_string());
        flag("width", self.width.to_string());
        flag("hidden", self.hidden.to_string());
        flag("experts", self.experts.to_string());
        flag("top-k", self.top_k.to_string());
        flag("shared", self.shared.to_string());
        flag("batch", self.batch.to_string());
        flag("seq", self.seq.to_string());
        flag("lr", self.lr.to_string());
        flag("clip", self.clip.to_string());
        flag("balance", value_name(self.balance));
        flag("dtype", value_name(self.dtype));
        flag("gate", self.gate.name().to_owned());
        flag("seed", self.seed.to_string());
        if let Some(rate) = self.balance_rate {
            flag("balance-rate", rate.to_string());
        }
        if self.no_mixing {
            words.push("--no-mixing".to_owned());
        }
        words.join(" ")
    }

    /// The settings of a checkpoint, checked like those of a command line.
    ///
    /// # Errors
    /// If the line is none that [`to_line`](Settings::to_line) writes.
    pub fn from_line(line: &str) -> Result<Self> {
        let words = std::iter::once("train").chain(line.split_whitespace());
        let options = Options::try_parse_from(words).context("the settings cannot be read")?;
        if options.resume.is_some() {
            bail!("the settings name another checkpoint");
        }
        options.settings.check()?;
        Ok(options.settings)
    }

    /// The word that stands for the balancing on the command line.
    pub fn balance_word(&self) -> String {
        value_name(self.balance)
    }
}

fn value_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("train").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn settings_survive_their_line() {
        for line in [
            "",
            "--layers 3 --shared 24 --balance sequence --balance-rate 0.02 --no-mixing --dtype bf16 --gate native --lr 1e-3",
        ] {
            let settings = parse(line).unwrap().settings;
            assert_eq!(Settings::from_line(&settings.to_line()).unwrap(), settings);
        }
    }

    #[test]
    fn a_resumed_run_keeps_its_settings() {
        assert!(parse("--resume a.safetensors --steps 900 --out elsewhere").is_ok());
        assert!(parse("--resume a.safetensors --width 32").is_err());
    }

    #[test]
    fn the_sequences_are_for_the_ranks_that_are_left() {
        let degrees = |line| parse(line).unwrap().layout.degrees(8);
        assert_eq!(degrees("").dp_shard, 8);
        assert_eq!(degrees("--tp 2 --dp-replicate 2 --ep 2").dp_shard, 2);
        assert_eq!(degrees("--cp 2 --tp 2").dp_shard, 2);
        assert_eq!(degrees("--dp-shard 3").dp_shard, 3);
        assert_eq!(degrees("--tp 0").tp, 0);
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (line, name) in
            [("--layers 0", "--layers"), ("--lr 0", "--lr"), ("--lr nan", "--lr"), ("--clip -1", "--clip")]
        {
            let line = line.replace("--clip -1", "--clip=-1");
            let error = parse(&line).unwrap().settings.check().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(parse("--batch 8000 --seq 8000").unwrap().settings.check().is_err());
    }

    #[test]
    fn settings_that_were_tampered_with_are_an_error() {
        assert!(Settings::from_line("--layers 0").is_err());
        assert!(Settings::from_line("--resume x").is_err());
        assert!(Settings::from_line("--layers many").is_err());
        assert!(Settings::from_line("garbage").is_err());
    }
}
