//! A product in which every element is one chain of multiply-adds over k, in order, from +0.
//!
//! The chain of an `EXACT` product is fused on every unit, at whatever cost; other products take the unit's own step.
//!
//! A tile of up to `ROWS` rows and `COLS` columns is summed in registers. A chain that was begun in an earlier block of k
//! is loaded and goes on, so cutting k into blocks changes no bit.

use crate::exact::fused;
use crate::gemm::Simd;

/// k's of a block: a panel of them fills half of a first-level cache.
pub(crate) const BLOCK: usize = 256;

/// Rows of the left operand times a panel of `COLS` columns.
pub(crate) struct Chain<'a, const EXACT: bool> {
    /// Element (row, k) is `left[row * stride + k * across]`.
    pub(crate) left: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) across: usize,
    pub(crate) rows: usize,
    /// (steps, COLS)
    pub(crate) panel: &'a [f32],
    pub(crate) steps: usize,
    /// `rows` rows of COLS sums, `pitch` apart
    pub(crate) sums: &'a mut [f32],
    pub(crate) pitch: usize,
    /// The sums start at +0 instead of what is there.
    pub(crate) first: bool,
}

/// The pointers of one tile.
#[derive(Clone, Copy)]
struct Tile {
    left: *const f32,
    stride: usize,
    across: usize,
    panel: *const f32,
    steps: usize,
    sums: *mut f32,
    pitch: usize,
    first: bool,
}

impl<const EXACT: bool> Chain<'_, EXACT> {
    /// Sums all rows.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(self, s: S) {
        let Self { left, stride, across, rows, panel, steps, sums, pitch, first } = self;
        if rows == 0 {
            return;
        }
        assert!(steps == 0 || left.len() > (rows - 1) * stride + (steps - 1) * across);
        assert!(panel.len() >= steps * S::COLS && sums.len() >= (rows - 1) * pitch + S::COLS);
        let tiles = rows.div_ceil(S::ROWS);
        for at in 0..tiles {
            // Tiles of equal height leave none too low to keep the multipliers busy.
            let (start, end) = (rows * at / tiles, rows * (at + 1) / tiles);
            let tile = Tile {
                left: left.as_ptr().wrapping_add(start * stride),
                stride,
                across,
                panel: panel.as_ptr(),
                steps,
                sums: sums[start * pitch..].as_mut_ptr(),
                pitch,
                first,
            };
            // SAFETY: by the assertions, `steps` elements of rows `start..end` and of the panel can be read, and the sums
            // of these rows lie in their slice.
            unsafe { of_height::<S, EXACT>(s, end - start, tile) };
        }
    }
}

/// Chooses the code for a tile's height, so that it is a constant in it.
///
/// # Safety
/// As [`multiply`], with `height` for `M`.
#[inline(always)]
unsafe fn of_height<S: Simd, const EXACT: bool>(s: S, height: usize, tile: Tile) {
    macro_rules! heights {
        ($($height:literal)*) => {
            match height {
                // SAFETY: the caller's promise, and the height matches.
                $($height if $height <= S::ROWS => unsafe { multiply::<S, EXACT, $height>(s, tile) },)*
                _ => {}
            }
        };
    }
    heights!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// Sums one tile of `M` rows.
///
/// # Safety
/// `steps` elements of `M` rows on the left and `steps * COLS` of the panel can be read, and `M` rows of `COLS` sums,
/// `pitch` apart, read and written.
#[inline(always)]
unsafe fn multiply<S: Simd, const EXACT: bool, const M: usize>(s: S, tile: Tile) {
    let mut sums = [[s.splat(0.0); 2]; M];
    if !tile.first {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let at = tile.sums.add(row * tile.pitch);
                *sums = [s.load(at), s.load(at.add(S::LANES))];
            }
        }
    }
    let step =
        |value, column, sum| if EXACT { fused(s, value, column, sum) } else { s.fma(value, column, sum) };
    let (mut left, mut panel) = (tile.left, tile.panel);
    for _ in 0..tile.steps {
        // SAFETY: the caller's promise.
        let columns = unsafe { [s.load(panel), s.load(panel.add(S::LANES))] };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let value = s.splat(unsafe { *left.add(row * tile.stride) });
            sums[0] = step(value, columns[0], sums[0]);
            sums[1] = step(value, columns[1], sums[1]);
        }
        left = left.wrapping_add(tile.across);
        panel = panel.wrapping_add(S::COLS);
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let at = tile.sums.add(row * tile.pitch);
            s.store(sums[0], at);
            s.store(sums[1], at.add(S::LANES));
        }
    }
}
