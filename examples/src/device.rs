//! Devices by name: the one place where a program's `--device` becomes a type.

use anyhow::Result;
use half::{bf16, f16};
use moe_core::{Host, MoeDevice};
use moe_cpu::Cpu;
use moe_cuda::Cuda;
#[cfg(feature = "opencl")]
use moe_opencl::OpenCl;
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

/// The devices that a program can be asked for, by these names.
pub const NAMES: &str = "host, cpu, cuda[:N] or opencl[:PLATFORM[:DEVICE]]";

/// One of [`NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// the reference: every op by its definition, on one thread
    Host,
    /// this machine's processor: threads, and the widest vector unit there is
    #[default]
    Cpu,
    /// an NVIDIA GPU, by its number
    Cuda(usize),
    /// an OpenCL device, by the numbers of its platform and of itself in it; `None` is the one that is likely the best
    OpenCl(Option<(usize, usize)>),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |number: &str, advice: &str| number.parse().map_err(|_| format!("wanted {advice}, got `{text}`"));
        let (opencl, cuda) =
            ("numbers of platform and device, as in opencl:0:0", "the GPU's number, as in cuda:0");
        match *text.split(':').collect::<Vec<_>>() {
            ["host"] => Ok(Self::Host),
            ["cpu"] => Ok(Self::Cpu),
            ["cuda"] => Ok(Self::Cuda(0)),
            ["cuda", gpu] => Ok(Self::Cuda(number(gpu, cuda)?)),
            ["opencl"] => Ok(Self::OpenCl(None)),
            ["opencl", platform] => Ok(Self::OpenCl(Some((number(platform, opencl)?, 0)))),
            ["opencl", platform, device] => {
                Ok(Self::OpenCl(Some((number(platform, opencl)?, number(device, opencl)?))))
            }
            _ => Err(format!("there is no device `{text}`: wanted {NAMES}")),
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
            Self::OpenCl(None) => f.write_str("opencl"),
            Self::OpenCl(Some((platform, device))) => write!(f, "opencl:{platform}:{device}"),
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
            #[cfg(feature = "opencl")]
            Self::OpenCl(None) => Ok(task.run(OpenCl::new()?)),
            #[cfg(feature = "opencl")]
            Self::OpenCl(Some((platform, device))) => Ok(task.run(OpenCl::open(platform, device)?)),
            #[cfg(not(feature = "opencl"))]
            Self::OpenCl(_) => anyhow::bail!("{WITHOUT_OPENCL}"),
        }
    }
}

/// What to do for OpenCL devices.
#[cfg(not(feature = "opencl"))]
const WITHOUT_OPENCL: &str = "this program was built without OpenCL: build it again with `--features opencl`, which needs the loader \
     (Debian: ocl-icd-opencl-dev)";

/// The devices that this machine has, one a line with its name for `--device`; or why a kind of them has none.
pub fn list() -> Vec<String> {
    let mut lines = vec!["host    the reference".to_owned(), "cpu     this machine's processor".to_owned()];
    match Cuda::count() {
        Ok(0) => lines.push("cuda    no GPU".to_owned()),
        Ok(count) => lines.extend((0..count).map(|gpu| match Cuda::open(gpu) {
            Ok(device) => format!("cuda:{gpu}  {}", device.name()),
            Err(error) => format!("cuda:{gpu}  {error}"),
        })),
        Err(error) => lines.push(format!("cuda    {error}")),
    }
    #[cfg(feature = "opencl")]
    match OpenCl::list() {
        Ok(found) if found.is_empty() => lines.push("opencl  no device".to_owned()),
        Ok(found) => lines.extend(found.iter().map(ToString::to_string)),
        Err(error) => lines.push(format!("opencl  {error}")),
    }
    #[cfg(not(feature = "opencl"))]
    lines.push(format!("opencl  {WITHOUT_OPENCL}"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_its_text() {
        let opencl = [None, Some((0, 0)), Some((1, 2))].map(DeviceName::OpenCl);
        let others = [DeviceName::Host, DeviceName::Cpu, DeviceName::Cuda(0), DeviceName::Cuda(3)];
        for name in others.into_iter().chain(opencl) {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn a_platform_alone_means_its_first_device() {
        assert_eq!("opencl:2".parse(), Ok(DeviceName::OpenCl(Some((2, 0)))));
    }

    #[test]
    fn the_list_has_a_line_for_every_kind_of_device() {
        let lines = list();
        for kind in ["host", "cpu", "cuda", "opencl"] {
            assert!(lines.iter().any(|line| line.starts_with(kind)), "{kind}: {lines:?}");
        }
    }

    #[cfg(not(feature = "opencl"))]
    #[test]
    fn without_opencl_the_error_says_how_to_build_it() {
        struct Nothing;
        impl DeviceTask for Nothing {
            type Output = ();
            fn run<D: AnyDevice>(self, _: D) {}
        }
        let error = DeviceName::OpenCl(None).open(Nothing).unwrap_err();
        assert!(error.to_string().contains("--features opencl"), "{error}");
    }

    #[test]
    fn other_names_are_refused_with_advice() {
        for (text, advice) in [
            ("gpu", "wanted host"),
            ("cpu:1", "wanted host"),
            ("cuda:x", "cuda:0"),
            ("cuda:-1", "cuda:0"),
            ("opencl:x", "opencl:0:0"),
            ("opencl:0:x", "opencl:0:0"),
            ("opencl:0:0:0", "wanted host"),
        ] {
            let error = text.parse::<DeviceName>().unwrap_err();
            assert!(error.contains(advice), "{error}");
        }
    }
}
