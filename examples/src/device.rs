//! Devices by name: the one place where a program's `--device` becomes a type.

use anyhow::Result;
use half::{bf16, f16};
use moe_core::{Host, MoeDevice};
use moe_cpu::Cpu;
use moe_cuda::Cuda;
use std::fmt;
use std::str::FromStr;

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

/// The devices that a program can be asked for: `host`, `cpu`, `cuda`, `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// the reference: every op by its definition, on one thread
    Host,
    /// this machine's processor: threads, and the widest vector unit there is
    #[default]
    Cpu,
    /// an NVIDIA GPU, by its number
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "host" => Ok(Self::Host),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => number
                .parse()
                .map(Self::Cuda)
                .map_err(|_| format!("wanted the GPU's number, as in cuda:0, got `{text}`")),
            _ => Err(format!("there is no device `{text}`: wanted host, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceName {
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
            Self::Cuda(number) => Ok(task.run(Cuda::open(number)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_its_text() {
        for name in [DeviceName::Host, DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Cuda(3)] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn other_names_are_refused_with_advice() {
        for (text, advice) in
            [("gpu", "wanted host"), ("cpu:1", "wanted host"), ("cuda:x", "cuda:0"), ("cuda:-1", "cuda:0")]
        {
            let error = text.parse::<DeviceName>().unwrap_err();
            assert!(error.contains(advice), "{error}");
        }
    }
}
