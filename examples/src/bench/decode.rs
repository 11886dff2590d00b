//! Decoding: a few tokens through several layers on a GPU, launched one by one and as one captured graph.

use super::{fill, median, repeat};
use crate::gate::GateName;
use anyhow::Result;
use clap::Parser;
use half::bf16;
use moe_core::{Device, Limits, MoeConfig, Runner, Sizes, whole, whole_mut};
use moe_cuda::Cuda;
use serde_json::json;
use std::time::Duration;

/// Times decoding in bf16 on an NVIDIA GPU and prints one line of JSON per number of tokens.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// number of the GPU
    #[arg(long, default_value_t = 0)]
    pub device: usize,
    /// tokens of a step
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    pub tokens: Vec<usize>,
    /// width, hidden width, experts, experts per token [default: those of Qwen3-30B-A3B]
    #[arg(long, value_delimiter = ',', num_args = 4, default_value = "2048,768,128,8")]
    pub sizes: Vec<usize>,
    /// layers in a row, with weights of their own, so that none are left in a cache
    #[arg(long, default_value_t = 6)]
    pub layers: usize,
    /// how the gate's logits are computed
    #[arg(long, value_enum, default_value_t)]
    pub gate: GateName,
    /// how long to measure each
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
}

/// Measures; `print` takes each line when it is there.
///
/// # Errors
/// If the sizes are no layer, or the GPU fails.
pub fn measure(options: &Options, mut print: impl FnMut(String)) -> Result<()> {
    let [width, hidden, experts, top_k] = options.sizes[..] else {
        anyhow::bail!("--sizes wants four numbers D,F,E,K, got {}", options.sizes.len());
    };
    let device = Cuda::open(options.device)?;
    let mut config = MoeConfig::new(Sizes { width, hidden, experts, top_k })?;
    config.rule.gate = options.gate.into();
    let copies = copy_rate(&device)?;
    let layers =
        (0..options.layers.max(1)).map(|nth| fill::layer::<Cuda, bf16>(&device, &config, nth as u64 + 1));
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let budget = Duration::from_secs_f64(options.seconds.clamp(0.0, 60.0));
    for &tokens in &options.tokens {
        let mut runner = Runner::<_, bf16>::with_limits(&device, &config, Limits::inference(tokens))?;
        let stream = runner.session().stream().clone();
        let x = runner.upload(fill::tokens::<bf16>(tokens, width, 1)?.view())?;
        let mut y = runner.like(&x)?;
        let mut touched = 0;
        for layer in &layers {
            runner.forward(layer, &x, &mut y)?;
            touched += runner.forward_figures()?.tokens_per_expert.iter().filter(|count| **count > 0).count();
        }
        let mut step = |runner: &mut Runner<Cuda, bf16>| -> Result<()> {
            for layer in &layers {
                runner.forward(layer, &x, &mut y)?;
            }
            Ok(())
        };
        let mut eager = repeat(budget, || {
            step(&mut runner)?;
            Ok(runner.session().sync()?)
        })?;
        let mut graph = stream.capture(|| step(&mut runner))?;
        let mut replayed = repeat(budget, || {
            graph.replay()?;
            Ok(runner.session().sync()?)
        })?;
        let count = layers.len() as f64;
        let (eager, replayed) = (median(&mut eager) / count, median(&mut replayed) / count);
        let bytes = touched as f64 / count * (3 * width * hidden * size_of::<bf16>()) as f64;
        print(
            json!({
                "tokens": tokens,
                "sizes": options.sizes,
                "gate": options.gate.name(),
                "layers": layers.len(),
                "eager_us": eager * 1e6,
                "graph_us": replayed * 1e6,
                "touched_experts": touched as f64 / count,
                "gigabytes_per_second": bytes / replayed / 1e9,
                "copy_gigabytes_per_second": copies / 1e9,
                "floor_us": bytes / copies * 1e6,
                "times_the_floor": replayed * copies / bytes,
                "paths": paths(&runner),
            })
            .to_string(),
        );
    }
    Ok(())
}

/// Bytes per second that a large copy on the device reads and writes, the most that its memory can be asked for.
fn copy_rate(device: &Cuda) -> Result<f64> {
    const BYTES: usize = 1 << 30;
    let stream = device.stream()?;
    let source = device.alloc::<u8>(&stream, BYTES)?;
    let mut target = device.alloc::<u8>(&stream, BYTES)?;
    let mut runs = repeat(Duration::from_millis(200), || {
        for _ in 0..8 {
            device.copy(&stream, whole::<Cuda, u8>(&source), whole_mut::<Cuda, u8>(&mut target))?;
        }
        Ok(device.sync(&stream)?)
    })?;
    Ok(16.0 * BYTES as f64 / median(&mut runs))
}

/// The ops of a step and their ways.
fn paths(runner: &Runner<Cuda, bf16>) -> Vec<String> {
    runner.trace().counts().iter().map(|(op, path, _)| format!("{op}: {}", path.0)).collect()
}
