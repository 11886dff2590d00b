//! The vector unit of plain arrays, which compilers vectorise for any target.

use super::simd::{Ahead, Block, Simd, TILE};
use half::{bf16, f16};

/// Four lanes, so that a tile's sums fit sixteen registers of 128 bits. With `PAIRS` it multiplies bf16 pairs, and with
/// `TILES` also in tiles, by which tests go the way of processors that do.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const PAIRS: bool = false, const TILES: bool = false>;

type V = [f32; 4];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    core::array::from_fn(|lane| f(a[lane], b[lane]))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// Exact, and free of branches: the exponent is moved over and rebased by a product, infinities and NaN are patched.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let value = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let value = if magnitude >= 0x7c00 << 13 { value | 0x7f80_0000 } else { value };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

/// The two values of a pair.
#[inline(always)]
fn pair(value: f32) -> [f32; 2] {
    [value.to_bits() << 16, value.to_bits() & 0xffff_0000].map(f32::from_bits)
}

impl<const PAIRS: bool, const TILES: bool> Simd for Portable<PAIRS, TILES> {
    const LANES: usize = 4;
    const ROWS: usize = 4;
    const FUSED: bool = false;
    const DOT: bool = PAIRS;
    const MATRIX: bool = TILES;
    type V = V;

    #[inline(always)]
    fn splat(self, value: f32) -> V {
        [value; 4]
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    /// Rounded twice: a fused product without hardware support would be a hundred times slower.
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        core::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn select_lt(self, a: V, b: V, yes: V, no: V) -> V {
        core::array::from_fn(|lane| if a[lane] < b[lane] { yes[lane] } else { no[lane] })
    }
    #[inline(always)]
    fn scale(self, value: V, n: V) -> V {
        zip(value, n, |value, n| {
            let half = n as i32 >> 1;
            value * power_of_two(half) * power_of_two(n as i32 - half)
        })
    }

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> V {
        // SAFETY: the caller's promise.
        core::array::from_fn(|lane| unsafe { *at.add(lane) })
    }
    #[inline(always)]
    unsafe fn store(self, value: V, at: *mut f32) {
        for (lane, value) in value.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *at.add(lane) = value };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, at: *const bf16) -> V {
        // SAFETY: the caller's promise.
        core::array::from_fn(|lane| f32::from_bits(u32::from(unsafe { *at.add(lane) }.to_bits()) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, value: V, at: *mut bf16) {
        for (lane, value) in value.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *at.add(lane) = bf16::from_f32(value) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, at: *const f16) -> V {
        // SAFETY: the caller's promise.
        core::array::from_fn(|lane| widen(unsafe { *at.add(lane) }.to_bits()))
    }
    #[inline(always)]
    unsafe fn store_f16(self, value: V, at: *mut f16) {
        for (lane, value) in value.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *at.add(lane) = f16::from_f32(value) };
        }
    }
    #[inline(always)]
    fn dot_bf16(self, sum: V, a: V, b: V) -> V {
        core::array::from_fn(|lane| {
            let ([a, c], [b, d]) = (pair(a[lane]), pair(b[lane]));
            sum[lane] + a * b + c * d
        })
    }
    #[inline(always)]
    unsafe fn load_even(self, at: *const bf16) -> V {
        // SAFETY: the caller's promise.
        core::array::from_fn(|lane| f32::from_bits(u32::from(unsafe { *at.add(2 * lane) }.to_bits()) << 16))
    }
    #[inline(always)]
    unsafe fn load_odd(self, at: *const bf16) -> V {
        // SAFETY: the caller's promise.
        unsafe { self.load_even(at.add(1)) }
    }
    /// Even and odd products of a tile have a sum each, as in AMX.
    #[inline(always)]
    unsafe fn matrix<const TALL: usize>(self, block: Block, _: Ahead) {
        for (row, column) in (0..TALL * TILE).flat_map(|row| (0..Self::COLS).map(move |column| (row, column)))
        {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = block.sums.add(row * block.pitch + column);
                let mut total = if block.first { 0.0 } else { *sum };
                for tile in 0..block.depth {
                    let mut parts = [0.0; 2];
                    for step in tile * TILE..(tile + 1) * TILE {
                        let left = pair(*block.left.add(row * block.left_pitch + step));
                        let right = pair(*block.panel.add(step * Self::COLS + column));
                        parts = [parts[0] + left[0] * right[0], parts[1] + left[1] * right[1]];
                    }
                    total += parts[0] + parts[1];
                }
                *sum = total;
            }
        }
    }
}
