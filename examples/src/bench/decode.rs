//! Decoding: a few tokens through several layers on a GPU, launched one by one and as one captured graph.

use super::{fill, median, repeat};
use anyhow::Result;
use clap::Parser;
use half::bf16;
use moe_core::{Limits, MoeConfig, Runner, Sizes};
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
    let config = MoeConfig::new(Sizes { width, hidden, experts, top_k })?;
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
                "layers": layers.len(),
                "eager_us": eager * 1e6,
                "graph_us": replayed * 1e6,
                "touched_experts": touched as f64 / count,
                "gigabytes_per_second": bytes / replayed / 1e9,
            })
            .to_string(),
        );
    }
    Ok(())
}
