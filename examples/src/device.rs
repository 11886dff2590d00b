//! Devices by name: the one place where a program's `--device` becomes a type.

use anyhow::Result;
use half::{bf16, f16};
use moe_core::{Host, MoeDevice};
use moe_cpu::Cpu;

/// A device that runs the layer in every storage type that the programs use.
pub trait AnyDevice: MoeDevice<f32> + MoeDevice<bf16> + MoeDevice<f16> {}
impl<D: MoeDevice<f32> + MoeDevice<bf16> + MoeDevice<f16>> AnyDevice for D {}

/// Work for a device that is chosen at run time.
pub trait DeviceTask {
    /// What the work results in.
    type Output;

    /// Does the work on `device`.
    fn run<D: AnyDevice>(self, device: D) -> Self::Output;
}

/// The devices that a program can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceName {
    /// the reference: every op by its definition, on one thread
    Host,
    /// this machine's processor: threads, and the widest vector unit there is
    #[default]
    Cpu,
}

impl DeviceName {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cpu => "cpu",
        }
    }

    /// Opens the device with all its threads and does the work on it.
    ///
    /// # Errors
    /// If the device cannot be opened.
    pub fn open<W: DeviceTask>(self, task: W) -> Result<W::Output> {
        self.open_with(0, task)
    }

    /// As [`open`](Self::open), with this many threads where the device has any; 0 for all cores.
    ///
    /// # Errors
    /// If the device cannot be opened.
    pub fn open_with<W: DeviceTask>(self, threads: usize, task: W) -> Result<W::Output> {
        match self {
            Self::Host => Ok(task.run(Host)),
            Self::Cpu => Ok(task.run(Cpu::with_threads(threads)?)),
        }
    }
}
