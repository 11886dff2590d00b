//! Sums of outer products of rows: the inner part of the weight gradients.

use super::float::Float;
use super::isa::{Job, Unit};
use super::left::Rows;
use super::product::MAX_COLUMNS;
use super::rows::widen;
use super::scratch::{Scratch, bytes};
use super::simd::Simd;
use super::tasks::MAX_ROWS;
use super::tile::{BLOCK, Layout, Tiles};
use core::ops::Range;

/// `sum over rows r of left[r]^T * (factor(r) * right[r])`
#[derive(Clone, Copy)]
pub(crate) struct Outer<'a, T> {
    pub(crate) unit: Unit,
    pub(crate) left: Rows<'a, T>,
    pub(crate) right: Rows<'a, T>,
    /// a factor for each row of the right operand, by slot
    pub(crate) factors: Option<Factors<'a>>,
}

/// A factor for each row: `values[index[r]]`, or `values[r]`.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) index: Option<&'a [u32]>,
}

impl Factors<'_> {
    /// The factor of row `row`.
    #[inline]
    pub(crate) fn of(&self, row: usize) -> f32 {
        self.values[self.index.map_or(row, |index| index[row] as usize)]
    }
}

/// A worker's scratch memory, and the sums that [`Outer::run`] leaves in it.
pub(crate) struct OuterSpace<'a> {
    left: &'a mut [f32],
    panel: &'a mut [f32],
    sums: &'a mut [f32],
    /// A row's columns, widened.
    pub(crate) line: &'a mut [f32],
    pitch: usize,
}

impl<'a> OuterSpace<'a> {
    /// Bytes that [`new`](OuterSpace::new) takes.
    pub(crate) fn bytes(unit: Unit) -> usize {
        bytes::<f32>(MAX_ROWS * BLOCK)
            + bytes::<f32>(BLOCK * unit.cols())
            + bytes::<f32>(MAX_ROWS * MAX_COLUMNS)
            + bytes::<f32>(MAX_ROWS)
    }

    /// Takes its memory from `scratch`.
    pub(crate) fn new(unit: Unit, scratch: &mut Scratch<'a>) -> Self {
        Self {
            left: scratch.take(MAX_ROWS * BLOCK),
            panel: scratch.take(BLOCK * unit.cols()),
            sums: scratch.take(MAX_ROWS * MAX_COLUMNS),
            line: scratch.take(MAX_ROWS),
            pitch: 0,
        }
    }

    /// The sums of the task's left column `at`, from the task's first right column on.
    pub(crate) fn row(&self, at: usize) -> &[f32] {
        &self.sums[at * self.pitch..][..self.pitch]
    }
}

impl<T: Float> Outer<'_, T> {
    /// Sums over `rows`, for `left` columns of the one operand and `right` columns of the other.
    pub(crate) fn run(
        &self,
        rows: Range<usize>,
        left: Range<usize>,
        right: Range<usize>,
        space: &mut OuterSpace<'_>,
    ) {
        let (unit, cols) = (self.unit, self.unit.cols());
        space.pitch = right.len().next_multiple_of(cols);
        for block in 0..rows.len().div_ceil(BLOCK).max(1) {
            let start = rows.start + block * BLOCK;
            let depth = start..rows.end.min(start + BLOCK);
            self.left.transpose(unit, depth.clone(), left.clone(), space.line, space.left);
            for at in 0..space.pitch / cols {
                let columns = right.start + at * cols..right.end.min(right.start + (at + 1) * cols);
                unit.run(Gather { outer: self, depth: depth.clone(), columns, panel: space.panel });
                unit.run(Tiles {
                    left: space.left,
                    layout: Layout::Columns,
                    rows: left.len(),
                    panel: &*space.panel,
                    steps: depth.len(),
                    sums: &mut space.sums[at * cols..],
                    pitch: space.pitch,
                    first: block == 0,
                    ahead: &[],
                });
            }
        }
    }

    /// `line = sum over rows of factor(r) * left[r]`, for `columns` of the left operand, in order from +0.
    pub(crate) fn sum_left(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        factors: Option<Factors<'_>>,
        room: &mut [f32],
        line: &mut [f32],
    ) {
        line.fill(0.0);
        for row in rows {
            widen(self.unit, &self.left.row(row)[columns.clone()], room);
            let factor = factors.map_or(1.0, |factors| factors.of(row));
            super::rows::add_scaled(self.unit, line, factor, room);
        }
    }
}

/// Makes an f32 panel of `columns` of the right operand's rows.
struct Gather<'a, 'b, T> {
    outer: &'a Outer<'b, T>,
    depth: Range<usize>,
    columns: Range<usize>,
    panel: &'a mut [f32],
}

impl<T: Float> Job for Gather<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { outer, depth, columns, panel } = self;
        for (row, place) in depth.zip(panel.chunks_exact_mut(S::COLS)) {
            let from = &outer.right.row(row)[columns.clone()];
            let factor = outer.factors.map_or(1.0, |factors| factors.of(row));
            if from.len() == S::COLS {
                for half in [0, S::LANES] {
                    // SAFETY: both slices hold two vectors.
                    unsafe {
                        let value = T::load(s, from.as_ptr().add(half));
                        s.store(s.mul(value, s.splat(factor)), place.as_mut_ptr().add(half));
                    }
                }
            } else {
                place.fill(0.0);
                place.iter_mut().zip(from).for_each(|(place, from)| *place = factor * from.widen());
            }
        }
    }
}
