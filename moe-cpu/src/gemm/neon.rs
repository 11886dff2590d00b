//! The 128-bit unit of AArch64: NEON.

use super::simd::Simd;
use core::arch::aarch64::*;
use core::arch::asm;
use half::{bf16, f16};

/// Proof that the processor has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The processor has NEON.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

macro_rules! operations {
    ($($name:ident($($arg:ident),*) = $call:expr;)*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: float32x4_t),*) -> float32x4_t {
            // SAFETY: `self` proves that the processor has the instructions; they touch registers only.
            unsafe { $call }
        }
    )* };
}

/// Rounds to bf16, ties to even. NaN stays NaN.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn round_bf16(value: float32x4_t) -> uint16x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = vreinterpretq_u32_f32(value);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(value, value), rounded, quiet))
    }
}

impl Simd for Neon {
    const LANES: usize = 4;
    const ROWS: usize = 12;
    type V = float32x4_t;

    operations! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        fma(a, b, c) = vfmaq_f32(c, a, b);
        // Its own minimum and maximum have another rule for NaN.
        min(a, b) = vbslq_f32(vcltq_f32(a, b), a, b);
        max(a, b) = vbslq_f32(vcgtq_f32(a, b), a, b);
        select_lt(a, b, yes, no) = vbslq_f32(vcltq_f32(a, b), yes, no);
        scale(value, n) = {
            let n = vcvtq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
            vmulq_f32(vmulq_f32(value, power(half)), power(vsubq_s32(n, half)))
        };
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        // SAFETY: `self` proves that the processor has NEON.
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vld1q_f32(at) }
    }
    #[inline(always)]
    unsafe fn store(self, value: float32x4_t, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { vst1q_f32(at, value) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const bf16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(at.cast())))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, value: float32x4_t, at: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { vst1_u16(at.cast(), round_bf16(value)) }
    }
    /// The conversion has an intrinsic from Rust 1.94 on only.
    #[inline(always)]
    unsafe fn load_f16(self, at: *const f16) -> float32x4_t {
        // SAFETY: the caller's promise; the instruction touches registers only.
        unsafe {
            let value: float32x4_t;
            asm!(
                "fcvtl {value:v}.4s, {bits:v}.4h",
                bits = in(vreg) vld1_u16(at.cast()),
                value = lateout(vreg) value,
                options(pure, nomem, nostack)
            );
            value
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, value: float32x4_t, at: *mut f16) {
        // SAFETY: as for `load_f16`.
        unsafe {
            let bits: uint16x4_t;
            asm!(
                "fcvtn {bits:v}.4h, {value:v}.4s",
                value = in(vreg) value,
                bits = lateout(vreg) bits,
                options(pure, nomem, nostack)
            );
            vst1_u16(at.cast(), bits);
        }
    }
    #[inline(always)]
    unsafe fn load_even(self, at: *const bf16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u16(vld1q_u16(at.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_odd(self, at: *const bf16) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = vreinterpretq_u32_u16(vld1q_u16(at.cast()));
            vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff_0000)))
        }
    }
    /// A prefetch has no stable intrinsic.
    #[inline(always)]
    fn near(self, at: *const u8) {
        // SAFETY: a prefetch is a hint and faults on no address.
        unsafe { asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch is a hint and faults on no address.
        unsafe { asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(nomem, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn turn(self, from: *const u8, from_pitch: usize, to: *mut u8, to_pitch: usize) {
        for (row, column) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            let from = from.wrapping_add(row * from_pitch + column * 4);
            let to = to.wrapping_add(column * to_pitch + row * 4);
            // SAFETY: the caller's promise; this is a quarter of the square.
            unsafe { turn(from, from_pitch, to, to_pitch) }
        }
    }
}

/// A square of four times four elements: pairs, quadruples.
///
/// # Safety
/// Four elements of four rows can be read at `from` and written at `to`, and the processor has NEON.
#[inline(always)]
unsafe fn turn(from: *const u8, from_pitch: usize, to: *mut u8, to_pitch: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let row = |at: usize| vld1q_u32(from.add(at * from_pitch).cast());
        let put = |at: usize, value| vst1q_u64(to.add(at * to_pitch).cast(), value);
        let even = |a, b| vreinterpretq_u64_u32(vtrn1q_u32(a, b));
        let odd = |a, b| vreinterpretq_u64_u32(vtrn2q_u32(a, b));
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        put(0, vtrn1q_u64(even(a, b), even(c, d)));
        put(1, vtrn1q_u64(odd(a, b), odd(c, d)));
        put(2, vtrn2q_u64(even(a, b), even(c, d)));
        put(3, vtrn2q_u64(odd(a, b), odd(c, d)));
    }
}
