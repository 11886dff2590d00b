//! The 256-bit unit of x86-64: AVX2, FMA and F16C.

use super::simd::Simd;
use core::arch::x86_64::*;
use half::{bf16, f16};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

macro_rules! operations {
    ($($name:ident($($arg:ident),*) = $call:expr;)*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: __m256),*) -> __m256 {
            // SAFETY: `self` proves that the processor has the instructions; they touch registers only.
            unsafe { $call }
        }
    )* };
}

/// Rounds to bf16, ties to even, into the low half of each lane. NaN stays NaN.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn round_bf16(value: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(value);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    const STREAMS: bool = true;
    type V = __m256;

    operations! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        fma(a, b, c) = _mm256_fmadd_ps(a, b, c);
        min(a, b) = _mm256_min_ps(a, b);
        max(a, b) = _mm256_max_ps(a, b);
        select_lt(a, b, yes, no) = _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
        scale(value, n) = {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
            _mm256_mul_ps(_mm256_mul_ps(value, power(half)), power(_mm256_sub_epi32(n, half)))
        };
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn store(self, value: __m256, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(at, value) }
    }
    #[inline(always)]
    unsafe fn stream(self, value: __m256, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_ps(at, value) }
    }
    #[inline(always)]
    fn fence(self) {
        // SAFETY: SSE is part of every x86-64 processor.
        unsafe { _mm_sfence() }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const bf16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, value: __m256, at: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = round_bf16(value);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(bits, bits));
            _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const f16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, value: __m256, at: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(at.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value)) }
    }
    #[inline(always)]
    unsafe fn load_even(self, at: *const bf16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(at.cast()))) }
    }
    /// Reads one element further, which saves the mask and the registers that a tile of full height does not have.
    #[inline(always)]
    unsafe fn load_odd(self, at: *const bf16) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(at.add(1).cast()))) }
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
        // SAFETY: the caller's promise.
        unsafe { turn(from, from_pitch, to, to_pitch) }
    }
}

/// [`Simd::turn`] with vectors of 256 bits: pairs, quadruples, halves.
///
/// # Safety
/// As for [`Simd::turn`], and the processor has AVX2.
#[inline(always)]
pub(crate) unsafe fn turn(from: *const u8, from_pitch: usize, to: *mut u8, to_pitch: usize) {
    macro_rules! four {
        ($first:expr) => {{
            let row = from.add($first * from_pitch).cast::<f32>();
            let (a, b) = (_mm256_loadu_ps(row), _mm256_loadu_ps(row.byte_add(from_pitch)));
            let (c, d) = (
                _mm256_loadu_ps(row.byte_add(2 * from_pitch)),
                _mm256_loadu_ps(row.byte_add(3 * from_pitch)),
            );
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            [
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xee>(ab, cd),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
            ]
        }};
    }
    // SAFETY: the caller's promise.
    unsafe {
        let (upper, lower) = (four!(0), four!(4));
        for column in 0..4 {
            let (first, second) = (to.add(column * to_pitch), to.add((column + 4) * to_pitch));
            _mm256_storeu_ps(first.cast(), _mm256_permute2f128_ps::<0x20>(upper[column], lower[column]));
            _mm256_storeu_ps(second.cast(), _mm256_permute2f128_ps::<0x31>(upper[column], lower[column]));
        }
    }
}
