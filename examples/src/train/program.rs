//! The program from its options to its last file.

use super::launch;
use super::log::Log;
use super::options::Options;
use super::picture::Picture;
use super::run::{Place, Run};
use crate::device::DeviceName;
use crate::entropy::Entropy;
use crate::ranks::Ranks;
use crate::text::Text;
use anyhow::{Context, Result, ensure};
use moe_dist::checkpoint::Checkpoint;
use moe_dist::{Launch, World};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps of a run, if none are given.
const STEPS: u64 = 600;

/// How long ranks wait for each other to start.
const MEETING: Duration = Duration::from_secs(120);

/// Trains, prints a line per step, writes checkpoints, and ends with the held-out loss and the picture: alone, as one of the
/// ranks that a launcher has started, or by starting ranks on this machine.
///
/// # Errors
/// If an option is out of range, a file cannot be read or written, the device fails, or another rank.
pub fn run(options: Options) -> Result<()> {
    let launch = Launch::from_env()?;
    match (launch, options.layout.ranks) {
        (Some(launch), ranks) => {
            let (rank, size) = (launch.rank, launch.size);
            ensure!(
                ranks.is_none_or(|ranks| ranks == size),
                "--ranks says otherwise than the launcher of {size}"
            );
            let world = World::connect(&launch, MEETING).with_context(|| format!("rank {rank} of {size}"))?;
            run_on(options, world, launch.local_rank).with_context(|| format!("rank {rank} of {size}"))
        }
        (None, Some(ranks)) => launch::local(ranks),
        (None, None) => {
            let world = moe_dist::channel::world(1).pop().context("a world of one has one rank")?;
            run_on(options, world, 0)
        }
    }
}

/// One rank's run, the `local` one of its machine.
fn run_on(options: Options, world: World, local: usize) -> Result<()> {
    let threads = options.threads.or_else(|| options.layout.ranks.map(share_of_cores));
    use_threads(threads)?;
    ensure!(options.save_every > 0, "--save-every is 0, but must be at least 1");
    let text = match &options.text {
        Some(path) => Text::read(path)?,
        None => Text::embedded(),
    };
    let size = world.size();
    let links: BTreeSet<_> = (0..size).filter_map(|rank| Some(world.link(rank)?.to_string())).collect();
    let degrees = options.layout.degrees(size);
    let ranks = Arc::new(Ranks::new(world, degrees, options.layout.sequence_parallel)?);
    let device = match options.device {
        DeviceName::Cuda(first) => DeviceName::Cuda(first + local),
        other => other,
    };
    let (threads, sharded) = (threads.unwrap_or(0), options.layout.fsdp);
    let place = Place { device, threads, ranks, sharded };
    let mut run = match &options.resume {
        Some(path) => resume(path, options.steps, text, &place)
            .with_context(|| format!("cannot resume from {}", path.display()))?,
        None => Run::start(options.settings, options.steps.unwrap_or(STEPS), text, &place)?,
    };
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot make the folder {}", options.out.display()))?;
    let log = Log::new(run.steps(), run.step_count(), place.ranks.is_first());
    if !links.is_empty() {
        let links = Vec::from_iter(links).join(" and ");
        log.line(&format_args!("{size} ranks, from here over {links}"))?;
    }
    train(&mut run, &log, &options.out, options.save_every)?;
    log.finish();
    conclude(&mut run, &log, &options.out, place.ranks.is_first())
}

fn resume(path: &Path, steps: Option<u64>, text: Text, place: &Place) -> Result<Run> {
    Run::resume(&mut Checkpoint::open(path)?, steps, text, place)
}

/// Threads of each of the ranks that share this machine.
fn share_of_cores(ranks: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / ranks.max(1)).max(1)
}

/// Takes the steps that are left.
fn train(run: &mut Run, log: &Log, out: &Path, save_every: u64) -> Result<()> {
    let start = Instant::now();
    while run.step_count() < run.steps() {
        let report = run.step()?;
        log.step(&report)?;
        if report.step % save_every == 0 || report.step == run.steps() {
            let path = checkpoint_path(out, report.step);
            run.save(&path).with_context(|| format!("cannot write the checkpoint {}", path.display()))?;
            log.line(&format_args!("checkpoint {}", path.display()))?;
        }
    }
    log.line(&format_args!("training took {:.1} s", start.elapsed().as_secs_f64()))
}

/// Measures the held-out part, prints the result beside what counting gives, and draws the picture.
fn conclude(run: &mut Run, log: &Log, out: &Path, first: bool) -> Result<()> {
    let held_out = run.held_out()?;
    if !first {
        return Ok(());
    }
    let entropy = Entropy::measure(run.text().training(), run.text().held_out());
    log.line(&"held-out part, bits per byte (unigram and bigram counted in the training part)")?;
    log.line(&format_args!("  unigram entropy  {:.4}", entropy.unigram))?;
    log.line(&format_args!("  bigram entropy   {:.4}", entropy.bigram))?;
    log.line(&format_args!("  this model       {held_out:.4}"))?;
    let path = out.join("train.png");
    let balance = run.settings().balance_word();
    Picture { history: run.history(), entropy, held_out, balance: &balance }.write(&path)?;
    log.line(&format_args!("picture {}", path.display()))
}

fn checkpoint_path(out: &Path, step: u64) -> PathBuf {
    out.join(format!("step-{step:06}"))
}

fn use_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    ensure!((1..=1024).contains(&threads), "--threads is {threads}, but must be 1 to 1024");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start threads")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn train(line: &str) -> Result<()> {
        run(Options::try_parse_from(std::iter::once("train").chain(line.split_whitespace()))?)
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("moe-train-{name}-{}", std::process::id()))
    }

    /// A text that is short, so that the held-out part is evaluated quickly.
    fn write_text(folder: &Path) -> PathBuf {
        let path = folder.join("text");
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(&path, b"It is a truth universally acknowledged. ".repeat(20)).unwrap();
        path
    }

    #[test]
    fn a_run_resumed_from_its_file_ends_where_the_unbroken_one_did() {
        let folder = folder("resume");
        let text = write_text(&folder);
        let common = format!("--device host --text {} --out {}", text.display(), folder.display());
        let settings = "--width 8 --hidden 8 --experts 4 --batch 2 --seq 8 --steps 6 --save-every 3";
        train(&format!("{common}/unbroken {settings}")).unwrap();
        let half = checkpoint_path(&folder.join("unbroken"), 3);
        train(&format!("{common}/resumed --resume {}", half.display())).unwrap();
        let last = |name, file| std::fs::read(checkpoint_path(&folder.join(name), 6).join(file)).unwrap();
        for file in ["manifest.json", "rank-00000.safetensors"] {
            assert!(last("resumed", file) == last("unbroken", file), "{file}");
        }
        assert!(folder.join("resumed/train.png").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_done_is_said_before_training() {
        let folder = folder("refused");
        let text = write_text(&folder);
        let text = text.display();
        for (line, words) in [
            ("--text no-such-file".to_owned(), "cannot read the text no-such-file"),
            (format!("--text {text} --seq 100"), "at least 1010"),
            (format!("--resume {text}"), "cannot resume from"),
            (format!("--out {text}/sub"), "cannot make the folder"),
            ("--save-every 0".to_owned(), "--save-every"),
            ("--steps 0".to_owned(), "--steps"),
            ("--threads 0".to_owned(), "--threads"),
        ] {
            let error = train(&format!("--device host {line}")).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
