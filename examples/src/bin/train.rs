//! Trains a small byte-level language model whose blocks are Mixture-of-Experts layers.

use clap::Parser;
use moe_examples::train::options::Options;
use moe_examples::train::program;

fn main() -> anyhow::Result<()> {
    program::run(Options::parse())
}
