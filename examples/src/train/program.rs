//! The program from its options to its last file.

use super::checkpoint::Checkpoint;
use super::log::Log;
use super::options::Options;
use super::picture::Picture;
use super::run::{DeviceChoice, Run};
use crate::entropy::Entropy;
use crate::text::Text;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Steps of a run, if none are given.
const STEPS: u64 = 600;

/// Trains, prints a line per step, writes checkpoints, and ends with the held-out loss and the picture.
///
/// # Errors
/// If an option is out of range, a file cannot be read or written, or the device fails.
pub fn run(options: Options) -> Result<()> {
    use_threads(options.threads)?;
    ensure!(options.save_every > 0, "--save-every is 0, but must be at least 1");
    let text = match &options.text {
        Some(path) => Text::read(path)?,
        None => Text::embedded(),
    };
    let device = DeviceChoice { name: options.device, threads: options.threads.unwrap_or(0) };
    let mut run = match &options.resume {
        Some(path) => Run::resume(Checkpoint::read(path)?, options.steps, text, device)?,
        None => Run::start(options.settings, options.steps.unwrap_or(STEPS), text, device)?,
    };
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot make the folder {}", options.out.display()))?;
    let log = Log::new(run.steps(), run.step_count());
    train(&mut run, &log, &options.out, options.save_every)?;
    log.finish();
    conclude(&mut run, &log, &options.out)
}

/// Takes the steps that are left.
fn train(run: &mut Run, log: &Log, out: &Path, save_every: u64) -> Result<()> {
    let start = Instant::now();
    while run.step_count() < run.steps() {
        let report = run.step()?;
        log.step(&report)?;
        if report.step % save_every == 0 || report.step == run.steps() {
            let path = checkpoint_path(out, report.step);
            run.checkpoint()?.write(&path)?;
            log.line(&format_args!("checkpoint {}", path.display()))?;
        }
    }
    log.line(&format_args!("training took {:.1} s", start.elapsed().as_secs_f64()))
}

/// Measures the held-out part, prints the result beside what counting gives, and draws the picture.
fn conclude(run: &mut Run, log: &Log, out: &Path) -> Result<()> {
    let held_out = run.held_out()?;
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
    out.join(format!("step-{step:06}.safetensors"))
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
        let last = |name| Checkpoint::read(&checkpoint_path(&folder.join(name), 6)).unwrap();
        assert_eq!(last("resumed"), last("unbroken"));
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
