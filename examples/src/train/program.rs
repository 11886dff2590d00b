//! The program from its options to its last file.

use super::checkpoint::Checkpoint;
use super::log::Log;
use super::options::Options;
use super::picture::Picture;
use super::run::Run;
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
    let mut run = match &options.resume {
        Some(path) => Run::resume(Checkpoint::read(path)?, options.steps, text, options.device)?,
        None => Run::start(options.settings, options.steps.unwrap_or(STEPS), text, options.device)?,
    };
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot make the folder {}", options.out.display()))?;
    train(&mut run, &options.out, options.save_every)?;
    conclude(&mut run, &options.out)
}

/// Takes the steps that are left.
fn train(run: &mut Run, out: &Path, save_every: u64) -> Result<()> {
    let log = Log::new(run.steps(), run.step_count());
    let start = Instant::now();
    while run.step_count() < run.steps() {
        let report = run.step()?;
        log.step(&report);
        if report.step % save_every == 0 || report.step == run.steps() {
            let path = checkpoint_path(out, report.step);
            run.checkpoint()?.write(&path)?;
            log.line(&format!("checkpoint {}", path.display()));
        }
    }
    log.line(&format!("training took {:.1} s", start.elapsed().as_secs_f64()));
    log.finish();
    Ok(())
}

/// Measures the held-out part, prints the result beside what counting gives, and draws the picture.
fn conclude(run: &mut Run, out: &Path) -> Result<()> {
    let held_out = run.held_out()?;
    let entropy = Entropy::measure(run.text().training(), run.text().held_out());
    println!("held-out part, bits per byte (counts from the training part):");
    println!("  unigram entropy  {:.4}", entropy.unigram);
    println!("  bigram entropy   {:.4}", entropy.bigram);
    println!("  this model       {held_out:.4}");
    let path = out.join("train.png");
    let balance = run.settings().balance_word();
    Picture { history: run.history(), entropy, held_out, balance: &balance }.write(&path)?;
    println!("picture {}", path.display());
    Ok(())
}

fn checkpoint_path(out: &Path, step: u64) -> PathBuf {
    out.join(format!("step-{step:06}.safetensors"))
}

fn use_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    ensure!((1..=1024).contains(&threads), "--threads is {threads}, but must be 1 to 1024");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start threads")
}
