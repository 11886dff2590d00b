//! Runs the library on reference data and compares: `verify --device cpu --fixtures tests/fixtures`.

use anyhow::Result;
use clap::Parser;
use moe_examples::device::{AnyDevice, DeviceName, DeviceTask};
use moe_examples::verify::{Summary, verify};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the library on reference data and compares.
#[derive(Parser)]
struct Arguments {
    /// where the library runs: host, cpu, cuda or cuda:N, opencl or opencl:PLATFORM or opencl:PLATFORM:DEVICE
    #[arg(long, default_value_t)]
    device: DeviceName,
    /// folder of fixtures, searched with all folders below it
    #[arg(long)]
    fixtures: PathBuf,
}

/// The verification of one folder, for a device still to be named.
struct Verification {
    folder: PathBuf,
}

impl DeviceTask for Verification {
    type Output = Result<Summary>;

    fn run<D: AnyDevice>(self, device: D) -> Self::Output {
        Ok(verify(&device, &self.folder, |line| println!("{line}"))?)
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let task = Verification { folder: arguments.fixtures };
    let summary = arguments.device.open(task)??;
    println!("{summary}");
    Ok(if summary.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
