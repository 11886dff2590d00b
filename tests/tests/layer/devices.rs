//! The devices that layers are tested on.

use moe_core::Host;
use moe_cpu::Cpu;

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
        }
    };
}
pub(crate) use on_every_device;

/// The fast host backend with this many threads.
pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::with_threads(threads).expect("threads start")
}

/// The reference.
pub(crate) const HOST: Host = Host;
