//! The devices that layers are tested on.

use moe_core::Host;
use moe_cpu::Cpu;
use moe_cuda::{Cuda, CudaError};
#[cfg(feature = "opencl")]
use moe_opencl::{OpenCl, OpenClError};
use moe_tests::available;
use std::sync::OnceLock;

/// Runs a check that is generic over the device on each of them, in f32 and bf16, as tests `NAME::on_DEVICE`.
macro_rules! on_every_device {
    ($name:ident => $check:ident) => {
        mod $name {
            use super::$check;
            use half::bf16;

            #[test]
            fn on_the_reference() {
                $check::<f32, _>(&moe_core::Host);
                $check::<bf16, _>(&moe_core::Host);
            }

            #[test]
            fn on_cpu() {
                $check::<f32, _>(&$crate::devices::cpu(2));
                $check::<bf16, _>(&$crate::devices::cpu(2));
            }

            #[test]
            fn on_cuda() {
                if let Some(device) = $crate::devices::cuda(stringify!($name)) {
                    $check::<f32, _>(device);
                    $check::<bf16, _>(device);
                }
            }

            #[cfg(feature = "opencl")]
            #[test]
            fn on_opencl() {
                for device in $crate::devices::opencl(stringify!($name)) {
                    $check::<f32, _>(device);
                    $check::<bf16, _>(device);
                }
            }
        }
    };
}
pub(crate) use on_every_device;

/// The fast host backend with this many threads.
pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::with_threads(threads).expect("threads start")
}

/// The first GPU, opened once; `None` after a note that `test` skips it.
pub(crate) fn cuda(test: &str) -> Option<&'static Cuda> {
    static DEVICE: OnceLock<Result<Cuda, CudaError>> = OnceLock::new();
    available(test, "cuda", DEVICE.get_or_init(Cuda::new))
}

/// Every OpenCL device that the loader finds, opened once; none after a note that `test` skips them.
#[cfg(feature = "opencl")]
pub(crate) fn opencl(test: &str) -> &'static [OpenCl] {
    static DEVICES: OnceLock<Result<Vec<OpenCl>, OpenClError>> = OnceLock::new();
    available(test, "opencl", DEVICES.get_or_init(OpenCl::open_all)).map_or(&[], Vec::as_slice)
}

/// The reference.
pub(crate) const HOST: Host = Host;
