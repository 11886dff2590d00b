//! Times one Mixture-of-Experts layer and prints one line of JSON, or one per op.

use anyhow::Result;
use clap::Parser;
use half::{bf16, f16};
use moe_core::{MoeDevice, Scalar};
use moe_examples::bench::{Dtype, Options, measure, measure_ops};
use moe_examples::device::{AnyDevice, DeviceTask};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The measurement, for a device still to be opened.
struct Measurement(Options);

impl DeviceTask for Measurement {
    type Output = Result<Vec<String>>;

    fn run<D: AnyDevice>(self, device: D) -> Result<Vec<String>> {
        match self.0.dtype {
            Dtype::F32 => lines::<D, f32>(&device, &self.0),
            Dtype::Bf16 => lines::<D, bf16>(&device, &self.0),
            Dtype::F16 => lines::<D, f16>(&device, &self.0),
        }
    }
}

fn lines<D: MoeDevice<T>, T: Scalar>(device: &D, options: &Options) -> Result<Vec<String>> {
    if options.ops {
        return measure_ops::<D, T>(device, options);
    }
    let report = measure::<D, T>(device, options, || MEMORY.stats().bytes_allocated)?;
    Ok(vec![report.to_string()])
}

fn main() -> Result<()> {
    let options = Options::parse();
    let (device, threads) = (options.device, options.threads);
    for line in device.open_with(threads, Measurement(options))?? {
        println!("{line}");
    }
    Ok(())
}
