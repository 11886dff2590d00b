//! What to measure.

use crate::device::DeviceName;
use clap::{Parser, ValueEnum};
use std::str::FromStr;

/// Times one Mixture-of-Experts layer and prints one line of JSON.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// device that runs the layer
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceName,
    /// tokens, width, hidden width, experts, experts per token: T,D,F,E,K
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

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("wanted five whole numbers T,D,F,E,K, got `{text}`");
        let numbers: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse()).collect();
        match numbers.map_err(|_| wrong())?[..] {
            [tokens, width, hidden, experts, top_k] => Ok(Self { tokens, width, hidden, experts, top_k }),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_five_numbers() {
        let shape = Shape { tokens: 512, width: 256, hidden: 512, experts: 8, top_k: 2 };
        assert_eq!("512,256, 512,8,2".parse(), Ok(shape));
        assert!("512,256,512,8".parse::<Shape>().is_err());
        assert!("512,256,512,8,-2".parse::<Shape>().is_err());
    }
}
