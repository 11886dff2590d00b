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

    /// Steps of 32 bits, an f32 or a pair of bf16, are turned in squares; what is left, and f16, one by one.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { matrix, size: Size { k, .. }, columns, depth, panel } = self;
        let step = T::STEP;
        let source = &matrix[columns.start * k..columns.end * k];
        assert!(depth.end <= k && panel.len() >= depth.len() / step * step * S::COLS);
        let whole = |len: usize| if size_of::<T>() * step == 4 { len - len % SQUARE } else { 0 };
        let (steps, squares) = (whole(depth.len() / step), whole(columns.len()));
        for column in (0..squares).step_by(SQUARE) {
            for at in (0..steps).step_by(SQUARE) {
                // SAFETY: rows `column..column + SQUARE` of the source have `SQUARE` steps from here on, and so have the
                // panel's steps columns, by the assertion.
                unsafe {
                    let from = source.as_ptr().add(column * k + depth.start + at * step);
                    let to = panel.as_mut_ptr().add((at * S::COLS + column) * step);
                    s.turn(from.cast(), k * size_of::<T>(), to.cast(), S::COLS * size_of::<f32>());
                }
            }
        }
        for (column, row) in source.chunks_exact(k.max(1)).enumerate() {
            let done = if column < squares { steps * step } else { 0 };
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
