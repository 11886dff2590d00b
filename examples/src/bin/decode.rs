//! Times decoding on an NVIDIA GPU: a few tokens through several layers.

use clap::Parser;
use moe_examples::bench::decode::{Options, measure};

fn main() -> anyhow::Result<()> {
    measure(&Options::parse(), |line| println!("{line}"))
}
