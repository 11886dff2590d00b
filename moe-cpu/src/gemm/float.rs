//! Storage types as the vector units see them.

use super::simd::Simd;
use crate::ops::Ops;
use half::{bf16, f16};
use moe_core::Scalar;

/// A storage type that the kernels of this crate work on: f32, bf16 and f16. Sums are f32.
pub trait Float: Scalar<Acc = f32> + Lanes + Ops {}
impl Float for f32 {}
impl Float for bf16 {}
impl Float for f16 {}

/// Vector access to a storage type. Not nameable outside, so that [`Float`] stays as it is.
pub trait Lanes: Copy + Default + 'static {
    /// Neighbours in k that lie side by side in a packed panel: bf16 products take pairs.
    const STEP: usize = 1;
    /// Elements that may be read behind a panel.
    const BEHIND: usize = 0;

    /// # Safety
    /// `LANES` elements can be read.
    #[doc(hidden)]
    unsafe fn load<S: Simd>(s: S, at: *const Self) -> S::V;

    /// # Safety
    /// `LANES` elements can be written.
    #[doc(hidden)]
    unsafe fn store<S: Simd>(s: S, value: S::V, at: *mut Self);

    /// Adds one step of k to a tile's sums: the next of `left` for each of `M` rows, `stride` apart, times the next
    /// `STEP * COLS` of a panel, which `BEHIND` more elements follow. Neighbours in k are `across` apart on the left.
    ///
    /// # Safety
    /// All of these can be read.
    #[doc(hidden)]
    unsafe fn step<S: Simd, const M: usize>(
        s: S,
        left: *const f32,
        stride: usize,
        across: usize,
        panel: *const Self,
        sums: &mut [[S::V; 2]; M],
    );

    /// f32 places that a step takes in a row on the left. A unit that multiplies bf16 pairs reads them as they are, two in
    /// one place.
    #[doc(hidden)]
    fn slots<S: Simd>() -> usize {
        if S::DOT { 1 } else { Self::STEP }
    }
}

/// `sums += left * panel` for one k, both vectors of the panel loaded by `load`.
macro_rules! multiply {
    ($s:ident, $left:ident + $at:expr, $stride:ident, $sums:ident, $first:expr, $second:expr) => {{
        let (first, second) = ($first, $second);
        for (row, sums) in $sums.iter_mut().enumerate() {
            // SAFETY: the caller of `step` promises `M` rows, `stride` apart.
            let left = $s.splat(unsafe { *$left.add(row * $stride + $at) });
            sums[0] = $s.fma(left, first, sums[0]);
            sums[1] = $s.fma(left, second, sums[1]);
        }
    }};
}

impl Lanes for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(at) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, value: S::V, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { s.store(value, at) }
    }
    #[inline(always)]
    unsafe fn step<S: Simd, const M: usize>(
        s: S,
        left: *const f32,
        stride: usize,
        _: usize,
        panel: *const f32,
        sums: &mut [[S::V; 2]; M],
    ) {
        // SAFETY: a panel has two vectors for each k.
        multiply!(s, left + 0, stride, sums, unsafe { s.load(panel) }, unsafe {
            s.load(panel.add(S::LANES))
        });
    }
}

impl Lanes for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(at) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, value: S::V, at: *mut f16) {
        // SAFETY: the caller's promise.
        unsafe { s.store_f16(value, at) }
    }
    #[inline(always)]
    unsafe fn step<S: Simd, const M: usize>(
        s: S,
        left: *const f32,
        stride: usize,
        _: usize,
        panel: *const f16,
        sums: &mut [[S::V; 2]; M],
    ) {
        // SAFETY: a panel has two vectors for each k.
        multiply!(s, left + 0, stride, sums, unsafe { s.load_f16(panel) }, unsafe {
            s.load_f16(panel.add(S::LANES))
        });
    }
}

impl Lanes for bf16 {
    const STEP: usize = 2;
    const BEHIND: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const bf16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(at) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, value: S::V, at: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(value, at) }
    }
    #[inline(always)]
    unsafe fn step<S: Simd, const M: usize>(
        s: S,
        left: *const f32,
        stride: usize,
        across: usize,
        panel: *const bf16,
        sums: &mut [[S::V; 2]; M],
    ) {
        // SAFETY: a panel has two vectors of pairs for each pair of k.
        let second = unsafe { panel.add(2 * S::LANES) };
        if S::DOT {
            // SAFETY: as above; a vector of pairs is as long as a vector of f32.
            let (first, second) = unsafe { (s.load(panel.cast()), s.load(second.cast())) };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller promises `M` rows, `stride` apart.
                let left = s.splat(unsafe { *left.add(row * stride) });
                sums[0] = s.dot_bf16(sums[0], left, first);
                sums[1] = s.dot_bf16(sums[1], left, second);
            }
        } else {
            // SAFETY: as above.
            multiply!(s, left + 0, stride, sums, unsafe { s.load_even(panel) }, unsafe {
                s.load_even(second)
            });
            // SAFETY: as above; an element follows the panel.
            multiply!(s, left + across, stride, sums, unsafe { s.load_odd(panel) }, unsafe {
                s.load_odd(second)
            });
        }
    }
}
