//! The matrix unit of x86-64: AMX, tiles of bf16 pairs.
//!
//! Eight tile registers of 16 rows of 64 bytes belong to a thread from [`hold`] to [`release`]. Four hold sums, two a tile of the
//! left operand each, two a tile of the panel each. The instructions are written out, since Rust's intrinsics for them are not stable; the
//! compiler knows no tiles, so they keep what they hold from one piece of assembly to the next.

use super::simd::{Ahead, Block, Simd, TILE};
use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::LazyLock;

/// Whether the processor has AMX with bf16, the system saves its registers, and this process was granted them.
pub(crate) fn present() -> bool {
    static PRESENT: LazyLock<bool> = LazyLock::new(|| {
        const TILES: u32 = 1 << 24;
        const BF16: u32 = 1 << 22;
        const STATE: u64 = 3 << 17;
        if !is_x86_feature_detected!("xsave") || __cpuid_count(0, 0).eax < 7 {
            return false;
        }
        let has = __cpuid_count(7, 0).edx & (TILES | BF16) == TILES | BF16;
        // SAFETY: the system has enabled XSAVE, or it would not have been detected.
        has && unsafe { xcr0() } & STATE == STATE && granted()
    });
    *PRESENT
}

/// Which registers the system saves.
#[target_feature(enable = "xsave")]
fn xcr0() -> u64 {
    // SAFETY: register 0 exists wherever XSAVE is enabled, which a caller of this function knows.
    unsafe { _xgetbv(0) }
}

/// Linux reserves the room that the tiles need only for processes that ask.
fn granted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: the call reads and writes no memory of this process.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start: u8,
    rest: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles whole.
static SHAPE: Shape = Shape {
    palette: 1,
    start: 0,
    rest: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Takes this thread's tiles into use.
///
/// # Safety
/// [`present`] said so.
#[inline(always)]
pub(crate) unsafe fn hold() {
    // SAFETY: the caller's promise; the shape is one that the unit has.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, preserves_flags, readonly)) };
}

/// Gives this thread's tiles back, so that the system need not save them.
///
/// # Safety
/// [`present`] said so.
#[inline(always)]
pub(crate) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
}

/// As [`Simd::matrix`]: panels are 32 columns wide, two tiles.
///
/// # Safety
/// As there, and this thread is between [`hold`] and [`release`].
#[inline(always)]
pub(crate) unsafe fn matrix<S: Simd, const TALL: usize>(s: S, block: Block, mut ahead: Ahead) {
    let Block { left, left_pitch, panel, depth, sums, pitch, first } = block;
    let (second, below) = (left.wrapping_add(TILE * left_pitch), sums.wrapping_add(TILE * pitch));
    // From here on in bytes.
    let (left_pitch, pitch) = (left_pitch * size_of::<f32>(), pitch * size_of::<f32>());
    // SAFETY: sums lie in tiles 0 to 3; they can be read, by the caller's promise.
    unsafe {
        if first {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, preserves_flags, nomem));
            if TALL == 2 {
                asm!("tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags, nomem));
            }
        } else {
            asm!(
                "tileloadd tmm0, [{sums} + {pitch}*1]",
                "tileloadd tmm1, [{sums} + {pitch}*1 + 64]",
                sums = in(reg) sums, pitch = in(reg) pitch, options(nostack, preserves_flags, readonly)
            );
            if TALL == 2 {
                asm!(
                    "tileloadd tmm2, [{sums} + {pitch}*1]",
                    "tileloadd tmm3, [{sums} + {pitch}*1 + 64]",
                    sums = in(reg) below, pitch = in(reg) pitch, options(nostack, preserves_flags, readonly)
                );
            }
        }
    }
    let (mut left, mut second, mut panel) = (left, second, panel);
    for _ in 0..depth {
        ahead.ask(s);
        // SAFETY: a tile of the left operand, or two, and two of the panel can be read, by the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm6, [{panel} + {across}*1]",
                "tileloadd tmm4, [{left} + {pitch}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{panel} + {across}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                panel = in(reg) panel, across = in(reg) 128_usize, left = in(reg) left, pitch = in(reg) left_pitch,
                options(nostack, preserves_flags, readonly)
            );
            if TALL == 2 {
                asm!(
                    "tileloadd tmm5, [{left} + {pitch}*1]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    left = in(reg) second, pitch = in(reg) left_pitch,
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
        (left, second) = (left.wrapping_add(TILE), second.wrapping_add(TILE));
        panel = panel.wrapping_add(TILE * 32);
    }
    // SAFETY: the sums can be written, by the caller's promise.
    unsafe {
        asm!(
            "tilestored [{sums} + {pitch}*1], tmm0",
            "tilestored [{sums} + {pitch}*1 + 64], tmm1",
            sums = in(reg) sums, pitch = in(reg) pitch, options(nostack, preserves_flags)
        );
        if TALL == 2 {
            asm!(
                "tilestored [{sums} + {pitch}*1], tmm2",
                "tilestored [{sums} + {pitch}*1 + 64], tmm3",
                sums = in(reg) below, pitch = in(reg) pitch, options(nostack, preserves_flags)
            );
        }
    }
}
