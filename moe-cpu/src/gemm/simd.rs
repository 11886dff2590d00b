//! What the kernels ask of a vector unit.
//!
//! Kernels and activations are written once over [`Simd`] and compiled once per unit. A value of an implementing type is
//! a proof that the processor has the unit: only [`Isa::run`](super::Isa::run) makes one, after it was found at run
//! time. Everything here is `#[inline(always)]` because a function takes on the processor features of the function
//! that it is inlined into.

use half::{bf16, f16};

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Rows and columns that [`Simd::turn`] turns at once.
pub(crate) const SQUARE: usize = 8;

/// Rows, and steps of bf16 pairs, of a tile of a matrix unit.
pub(crate) const TILE: usize = 16;

/// Memory to be brought near while a product runs, a share at a time.
#[derive(Clone, Copy)]
pub struct Ahead {
    at: *const u8,
    /// bytes
    share: usize,
}

impl Ahead {
    /// All of `memory` in `shares` shares, or none at all.
    #[inline(always)]
    pub(crate) fn new<T>(memory: &[T], shares: usize) -> Self {
        Self { at: memory.as_ptr().cast(), share: size_of_val(memory).div_ceil(shares.max(1)) }
    }

    /// Without the next `shares`.
    #[inline(always)]
    pub(crate) fn after(self, shares: usize) -> Self {
        Self { at: self.at.wrapping_add(shares * self.share), ..self }
    }

    /// Asks for the next share.
    #[inline(always)]
    pub(crate) fn ask<S: Simd>(&mut self, s: S) {
        for line in (0..self.share).step_by(LINE) {
            s.prefetch(self.at.wrapping_add(line));
        }
        *self = self.after(1);
    }
}

/// What [`Simd::matrix`] multiplies: rows of the left operand times a panel, `depth` tiles of [`TILE`] pairs deep.
pub struct Block {
    /// Pairs, `left_pitch` from one row to the next.
    pub(crate) left: *const f32,
    pub(crate) left_pitch: usize,
    /// Pairs, `COLS` to a step.
    pub(crate) panel: *const f32,
    pub(crate) depth: usize,
    /// `COLS` columns, `pitch` from one row to the next.
    pub(crate) sums: *mut f32,
    pub(crate) pitch: usize,
    /// The sums start at 0 instead of what is there.
    pub(crate) first: bool,
}

/// A vector unit that works on `LANES` f32 values at a time.
///
/// Comparisons follow x86: `min`, `max` and `select_lt` give their last argument where one of the compared is NaN.
pub trait Simd: Copy + Send + Sync + 'static {
    /// f32 values in a vector.
    const LANES: usize;
    /// Columns of a packed panel: two vectors.
    const COLS: usize = 2 * Self::LANES;
    /// Most rows of a tile, so that `2 * ROWS` sums and the operands of one step fit the registers.
    const ROWS: usize;
    /// Parts of a cache line's worth of steps, in each of which a share of what lies ahead is asked for. A processor has few places
    /// for lines on their way, and the wider the panels, the more lines a step is worth: many at once would hold up the loads.
    const PARTS: usize = 1;
    /// Whether [`dot_bf16`](Simd::dot_bf16) multiplies bf16 pairs without widening them.
    const DOT: bool = false;
    /// Whether there is a matrix unit beside it, so that [`matrix`](Simd::matrix) multiplies bf16 pairs.
    const MATRIX: bool = false;
    /// Whether [`stream`](Simd::stream) goes past the caches.
    const STREAMS: bool = false;
    /// Whether [`fma`](Simd::fma) rounds once.
    const FUSED: bool = true;
    /// A vector.
    type V: Copy;

    fn splat(self, value: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `yes` where `a < b`, else `no`.
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// `value * 2^n` for integers `n` in -252..=254, rounded once.
    fn scale(self, value: Self::V, n: Self::V) -> Self::V;

    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load(self, at: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` elements can be written.
    unsafe fn store(self, value: Self::V, at: *mut f32);
    /// A store past the caches on units with [`STREAMS`](Simd::STREAMS), to be followed by a [`fence`](Simd::fence). It pays where
    /// whole cache lines are written in a row.
    ///
    /// # Safety
    /// `LANES` elements can be written, and `at` is aligned to a whole vector.
    unsafe fn stream(self, value: Self::V, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.store(value, at) }
    }
    /// Orders streamed stores before all later ones.
    fn fence(self) {}
    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load_bf16(self, at: *const bf16) -> Self::V;
    /// # Safety
    /// `LANES` elements can be written.
    unsafe fn store_bf16(self, value: Self::V, at: *mut bf16);
    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load_f16(self, at: *const f16) -> Self::V;
    /// # Safety
    /// `LANES` elements can be written.
    unsafe fn store_f16(self, value: Self::V, at: *mut f16);
    /// The even elements of `LANES` pairs.
    ///
    /// # Safety
    /// `2 * LANES` elements can be read.
    unsafe fn load_even(self, at: *const bf16) -> Self::V;
    /// The odd elements of `LANES` pairs.
    ///
    /// # Safety
    /// `2 * LANES + 1` elements can be read.
    unsafe fn load_odd(self, at: *const bf16) -> Self::V;
    /// `sum + a.0 * b.0 + a.1 * b.1` for vectors whose lanes hold the bits of bf16 pairs.
    fn dot_bf16(self, sum: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let _ = (a, b);
        sum
    }
    /// Takes the thread's matrix unit into use.
    fn hold(self) {}
    /// Gives it back.
    fn release(self) {}
    /// Adds the product of `TALL` (1 or 2) times [`TILE`] rows and a panel to the sums. Each sum is a chain over the tiles of depth, in
    /// order; in what order the unit adds up a tile's products is its own affair, but the same for all sums. Each tile of depth asks
    /// for a share of what lies ahead.
    ///
    /// # Safety
    /// All that the block describes can be read and the sums written, and the thread is between [`hold`](Simd::hold) and
    /// [`release`](Simd::release).
    unsafe fn matrix<const TALL: usize>(self, block: Block, ahead: Ahead) {
        let _ = (block, ahead);
    }
    /// Asks for the cache line at `at` to be brought to the first-level cache. Any address will do.
    fn near(self, at: *const u8) {
        let _ = at;
    }

    /// Asks for the cache line at `at` to be brought to the second-level cache. Any address will do.
    fn prefetch(self, at: *const u8) {
        let _ = at;
    }
    /// Copies a square of [`SQUARE`] times `SQUARE` elements of 32 bits so that rows become columns. Rows are `from_pitch` and
    /// `to_pitch` bytes apart, and need not be aligned.
    ///
    /// # Safety
    /// `SQUARE` elements of `SQUARE` rows can be read at `from` and written at `to`.
    unsafe fn turn(self, from: *const u8, from_pitch: usize, to: *mut u8, to_pitch: usize) {
        for row in 0..SQUARE {
            for column in 0..SQUARE {
                // SAFETY: the caller's promise.
                unsafe {
                    let value = from.add(row * from_pitch + column * 4).cast::<u32>().read_unaligned();
                    to.add(column * to_pitch + row * 4).cast::<u32>().write_unaligned(value);
                }
            }
        }
    }
}
