//! Filling a panel from plain weights: the change of layout itself.

use super::float::Float;
use super::isa::{Job, Unit};
use super::panel::{Order, Size};
use super::simd::{SQUARE, Simd};
use core::ops::Range;

/// Packs k's `depth` of `columns`, at most a panel's, into `panel`.
pub(crate) fn pack<T: Float>(
    unit: Unit,
    matrix: &[T],
    order: Order,
    size: Size,
    columns: Range<usize>,
    depth: Range<usize>,
    panel: &mut [T],
) {
    if columns.len() < unit.cols() || !depth.len().is_multiple_of(T::STEP) {
        panel.fill(T::default());
    }
    match order {
        Order::ByColumn => unit.run(Turn { matrix, size, columns, depth, panel }),
        Order::ByDepth => unit.run(Interleave { matrix, size, columns, depth, panel }),
    }
}

/// Rows of the weights become columns of the panel.
struct Turn<'a, T> {
    matrix: &'a [T],
    size: Size,
    columns: Range<usize>,
    depth: Range<usize>,
    panel: &'a mut [T],
}

impl<T: Float> Job for Turn<'_, T> {
    type Output = ();

    /// Words of 32 bits, an f32 or a pair of neighbours in k, are turned in squares; what is left goes one by one.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { matrix, size: Size { k, .. }, columns, depth, panel } = self;
        let (step, word) = (T::STEP, size_of::<u32>() / size_of::<T>());
        let source = &matrix[columns.start * k..columns.end * k];
        assert!(depth.end <= k && panel.len() >= depth.len() / step * step * S::COLS);
        let whole = |len: usize| len - len % SQUARE;
        let (words, squares) = (whole(depth.len() / word), whole(columns.len()));
        for column in (0..squares).step_by(SQUARE) {
            for at in (0..words).step_by(SQUARE) {
                // SAFETY: rows `column..column + SQUARE` of the source have `SQUARE` words from here on.
                let from = unsafe { source.as_ptr().add(column * k + depth.start + at * word) };
                let place = &mut panel[at * word * S::COLS + column * step..];
                if step == word {
                    assert!(place.len() >= ((SQUARE - 1) * S::COLS + SQUARE) * step);
                    // SAFETY: as above; the panel has room for `SQUARE` words in `SQUARE` steps, by the assertion.
                    unsafe {
                        s.turn(from.cast(), k * size_of::<T>(), place.as_mut_ptr().cast(), S::COLS * 4)
                    };
                } else {
                    let mut pairs = [[T::default(); 2 * SQUARE]; SQUARE];
                    // SAFETY: as above; a row of `pairs` holds `SQUARE` words.
                    unsafe { s.turn(from.cast(), k * size_of::<T>(), pairs.as_mut_ptr().cast(), SQUARE * 4) };
                    for (pairs, rows) in pairs.iter().zip(place.chunks_mut(2 * S::COLS)) {
                        let (even, odd) = rows.split_at_mut(S::COLS);
                        for column in 0..SQUARE {
                            (even[column], odd[column]) = (pairs[2 * column], pairs[2 * column + 1]);
                        }
                    }
                }
            }
        }
        for (column, row) in source.chunks_exact(k.max(1)).enumerate() {
            let done = if column < squares { words * word } else { 0 };
            for (at, value) in row[depth.clone()].iter().enumerate().skip(done) {
                panel[(at / step * S::COLS + column) * step + at % step] = *value;
            }
        }
    }
}

/// Rows of the weights stay rows of the panel; where a step holds two, they are interleaved.
struct Interleave<'a, T> {
    matrix: &'a [T],
    size: Size,
    columns: Range<usize>,
    depth: Range<usize>,
    panel: &'a mut [T],
}

impl<T: Float> Job for Interleave<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { matrix, size: Size { n, .. }, columns, depth, panel } = self;
        let row = |k: usize| &matrix[k * n..][columns.clone()];
        for (place, first) in panel.chunks_exact_mut(T::STEP * S::COLS).zip(depth.clone().step_by(T::STEP)) {
            let second = first + 1;
            if T::STEP == 1 && columns.len() == S::COLS {
                place.copy_from_slice(&row(first)[..S::COLS]);
            } else if T::STEP == 1 {
                place[..columns.len()].copy_from_slice(row(first));
            } else if second < depth.end {
                let pairs = row(first).iter().zip(row(second));
                for (place, (even, odd)) in place.chunks_exact_mut(2).zip(pairs) {
                    (place[0], place[1]) = (*even, *odd);
                }
            } else {
                place.chunks_exact_mut(2).zip(row(first)).for_each(|(place, even)| place[0] = *even);
            }
        }
    }
}
