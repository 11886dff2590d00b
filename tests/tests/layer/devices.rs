//! The devices that layers are tested on.

use moe_core::Host;
use moe_cpu::Cpu;
use moe_cuda::{Cuda, CudaError};
use moe_tests::available;
use std::sync::OnceLock;

/// Runs a check that is generic over the device on each of them, in f32 and bf16.
macro_rules! on_every_device {
    ($(#[doc = $doc:literal])* $name:ident => $check:ident) => {
        $(#[doc = $doc])*
        #[test]
        fn $name() {
            use half::bf16;
            $check::<f32, _>(&moe_core::Host);
            $check::<bf16, _>(&moe_core::Host);
            $check::<f32, _>(&$crate::devices::cpu(2));
            $check::<bf16, _>(&$crate::devices::cpu(2));
            if let Some(device) = $crate::devices::cuda(stringify!($name)) {
                $check::<f32, _>(device);
                $check::<bf16, _>(device);
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

/// The reference.
pub(crate) const HOST: Host = Host;
