//! Times one Mixture-of-Experts layer and prints one line of JSON.

use anyhow::Result;
use clap::Parser;
use half::{bf16, f16};
use moe_examples::bench::{Dtype, Options, Report, measure};
use moe_examples::device::{AnyDevice, DeviceTask};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The measurement, for a device still to be opened.
struct Measurement(Options);

impl DeviceTask for Measurement {
    type Output = Result<Report>;

    fn run<D: AnyDevice>(self, device: D) -> Result<Report> {
        let allocated = || MEMORY.stats().bytes_allocated;
        match self.0.dtype {
            Dtype::F32 => measure::<D, f32>(&device, &self.0, allocated),
            Dtype::Bf16 => measure::<D, bf16>(&device, &self.0, allocated),
            Dtype::F16 => measure::<D, f16>(&device, &self.0, allocated),
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let (device, threads) = (options.device, options.threads);
    println!("{}", device.open_with(threads, Measurement(options))??);
    Ok(())
}
