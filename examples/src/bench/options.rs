//! What to measure.

use crate::device::DeviceName;
use crate::gate::GateName;
use clap::{Parser, ValueEnum};
use moe_core::{ConfigError, MoeConfig, Sizes};
use std::str::FromStr;

/// Times one Mixture-of-Experts layer and prints one line of JSON, or with `--ops` one per op.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// device that runs the layer: host, cpu, cuda or cuda:N, opencl or opencl:PLATFORM or opencl:PLATFORM:DEVICE
    #[arg(long, default_value_t)]
    pub device: DeviceName,
    /// tokens, width, hidden width, experts, experts per token: T,D,F,E,K; or a model's name: qwen3-30b-a3b,
    /// mixtral-8x7b, olmoe-1b-7b, dsv3-ep8
    #[arg(long, default_value = "512,256,512,8,2")]
    pub shape: Shape,
    /// type of weights and activations
    #[arg(long, value_enum, default_value_t)]
    pub dtype: Dtype,
    /// what is timed
    #[arg(long, value_enum, default_value_t)]
    pub pass: Pass,
    /// threads of the device; 0 for all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// add to the weight gradients instead of overwriting them
    #[arg(long)]
    pub accumulate: bool,
    /// how the gate's logits are computed
    #[arg(long, value_enum, default_value_t)]
    pub gate: GateName,
    /// time each op on its own, with weights as they are
    #[arg(long)]
    pub ops: bool,
    /// how long to measure, after at least five runs
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

/// What is timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Pass {
    /// inference
    #[default]
    Fwd,
    /// training forward and backward
    Fwdbwd,
    /// forward, backward and an optimizer step with packing
    Step,
}

/// The type that weights and activations are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32-bit float
    #[default]
    F32,
    /// bfloat16
    Bf16,
    /// 16-bit IEEE float
    F16,
}

/// Sizes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// T
    pub tokens: usize,
    /// D
    pub width: usize,
    /// F
    pub hidden: usize,
    /// E
    pub experts: usize,
    /// K
    pub top_k: usize,
}

impl Options {
    /// The layer that is measured.
    ///
    /// # Errors
    /// If the shape is no layer.
    pub(super) fn config(&self) -> Result<MoeConfig, ConfigError> {
        let Shape { width, hidden, experts, top_k, .. } = self.shape;
        let mut config = MoeConfig::new(Sizes { width, hidden, experts, top_k })?;
        config.rule.gate = self.gate.into();
        Ok(config)
    }
}

impl Shape {
    const fn of([tokens, width, hidden, experts, top_k]: [usize; 5]) -> Self {
        Self { tokens, width, hidden, experts, top_k }
    }
}

/// Layers of published models with the tokens of a training step; the last is one of eight ranks of DeepSeek-V3.
const MODELS: [(&str, Shape); 4] = [
    ("qwen3-30b-a3b", Shape::of([16384, 2048, 768, 128, 8])),
    ("mixtral-8x7b", Shape::of([8192, 4096, 14336, 8, 2])),
    ("olmoe-1b-7b", Shape::of([32768, 2048, 1024, 64, 8])),
    ("dsv3-ep8", Shape::of([8192, 7168, 2048, 32, 8])),
];

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, shape)) = MODELS.iter().find(|(name, _)| *name == text) {
            return Ok(*shape);
        }
        let names = MODELS.map(|(name, _)| name).join(", ");
        let wrong = || format!("wanted five whole numbers T,D,F,E,K or one of {names}, got `{text}`");
        let numbers: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse()).collect();
        match numbers.map_err(|_| wrong())?[..] {
            [tokens, width, hidden, experts, top_k] => Ok(Self::of([tokens, width, hidden, experts, top_k])),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_five_numbers_or_a_model() {
        assert_eq!("512,256, 512,8,2".parse(), Ok(Shape::of([512, 256, 512, 8, 2])));
        assert_eq!("mixtral-8x7b".parse(), Ok(Shape::of([8192, 4096, 14336, 8, 2])));
        assert!("512,256,512,8".parse::<Shape>().is_err());
        assert!("512,256,512,8,-2".parse::<Shape>().is_err());
    }
}
