//! The 512-bit unit of x86-64: AVX-512 F, BW, DQ and VL, with products of bf16 pairs where the processor has them, in vectors or in
//! AMX tiles.

use super::amx;
use super::simd::{Ahead, Block, Simd};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// Proof that the processor has AVX-512 F, BW, DQ and VL, with `BF16` AVX512-BF16 too, and with `AMX` tiles of bf16.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool, const AMX: bool>(());

impl<const BF16: bool, const AMX: bool> Avx512<BF16, AMX> {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ and VL; if `BF16` is set AVX512-BF16; if `AMX` is set what [`amx::present`] looks for.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

macro_rules! operations {
    ($($name:ident($($arg:ident),*) = $call:expr;)*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: __m512),*) -> __m512 {
            // SAFETY: `self` proves that the processor has the instructions; they touch registers only.
            unsafe { $call }
        }
    )* };
}

/// Rounds to bf16, ties to even, into the low half of each lane. NaN stays NaN.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn round_bf16(value: __m512) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm512_castps_si512(value);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
        _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet))
    }
}

impl<const BF16: bool, const AMX: bool> Simd for Avx512<BF16, AMX> {
    const LANES: usize = 16;
    const ROWS: usize = 12;
    const PARTS: usize = 4;
    const DOT: bool = BF16;
    const MATRIX: bool = AMX;
    const STREAMS: bool = true;
    type V = __m512;

    operations! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        fma(a, b, c) = _mm512_fmadd_ps(a, b, c);
        min(a, b) = _mm512_min_ps(a, b);
        max(a, b) = _mm512_max_ps(a, b);
        select_lt(a, b, yes, no) = _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes);
        scale(value, n) = _mm512_scalef_ps(value, n);
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves that the processor has AVX-512 F.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn store(self, value: __m512, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(at, value) }
    }
    #[inline(always)]
    unsafe fn stream(self, value: __m512, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_ps(at, value) }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: SSE is part of every x86-64 processor.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const bf16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, value: __m512, at: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(at.cast(), _mm512_cvtepi32_epi16(round_bf16(value))) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const f16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, value: __m512, at: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(at.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)) }
    }
    #[inline(always)]
    unsafe fn load_even(self, at: *const bf16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(at.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_odd(self, at: *const bf16) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(at.cast()), high))
        }
    }
    #[inline(always)]
    fn dot_bf16(self, sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: used with `DOT` only, where `self` proves that the processor has AVX512-BF16; a `__m512bh` is the
        // same 64 bytes as a `__m512`.
        unsafe {
            let (a, b) =
                (core::mem::transmute::<__m512, __m512bh>(a), core::mem::transmute::<__m512, __m512bh>(b));
            _mm512_dpbf16_ps(sum, a, b)
        }
    }
    #[inline(always)]
    fn hold(self) {
        if AMX {
            // SAFETY: `self` proves that the processor has the unit.
            unsafe { amx::hold() };
        }
    }
    #[inline(always)]
    fn release(self) {
        if AMX {
            // SAFETY: as above.
            unsafe { amx::release() };
        }
    }
    #[inline(always)]
    unsafe fn matrix<const TALL: usize>(self, block: Block, ahead: Ahead) {
        if AMX {
            // SAFETY: the caller's promise.
            unsafe { amx::matrix::<Self, TALL>(self, block, ahead) };
        }
    }
    #[inline(always)]
    fn near(self, at: *const u8) {
        // SAFETY: a prefetch is a hint and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch is a hint and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn turn(self, from: *const u8, from_pitch: usize, to: *mut u8, to_pitch: usize) {
        // SAFETY: the caller's promise; `Unit` wants AVX2 beside AVX-512.
        unsafe { super::avx2::turn(from, from_pitch, to, to_pitch) }
    }
}
