//! The left operand: rows picked by an index and widened into scratch memory, a block of k at a time.

use super::float::{Float, Lanes};
use super::isa::{Job, Unit};
use super::rows::widen;
use super::simd::Simd;
use super::tile::BLOCK;
use core::ops::Range;

/// A row-major operand with an optional index: row r is row `index[r] / fan` of `values`, or row r.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) values: &'a [T],
    pub(crate) width: usize,
    pub(crate) index: Option<&'a [u32]>,
    pub(crate) fan: usize,
}

impl<'a, T: Float> Rows<'a, T> {
    /// Without an index.
    pub(crate) fn plain(values: &'a [T], width: usize) -> Self {
        Self { values, width, index: None, fan: 1 }
    }

    /// Row `row`.
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        let source = self.index.map_or(row, |index| index[row] as usize / self.fan);
        &self.values[source * self.width..][..self.width]
    }

    /// Brings columns `depth` of `rows` into `block`, in the layout of [`Layout::Rows`](super::tile::Layout).
    pub(crate) fn gather(&self, unit: Unit, rows: Range<usize>, depth: Range<usize>, block: &mut [f32]) {
        let paired = unit.run(Paired::<T>(core::marker::PhantomData));
        for (row, place) in rows.zip(block.chunks_exact_mut(BLOCK)) {
            let from = &self.row(row)[depth.clone()];
            if paired {
                let place: &mut [T] = bytemuck::cast_slice_mut(place);
                place[..from.len()].copy_from_slice(from);
                place[from.len()..from.len().next_multiple_of(T::STEP)].fill(T::default());
            } else {
                widen(unit, from, place);
                place[from.len()..from.len().next_multiple_of(T::STEP)].fill(0.0);
            }
        }
    }

    /// Brings columns `columns` of rows `depth` into `block`, in the layout of
    /// [`Layout::Columns`](super::tile::Layout): the rows are what is summed over.
    pub(crate) fn transpose(
        &self,
        unit: Unit,
        depth: Range<usize>,
        columns: Range<usize>,
        line: &mut [f32],
        block: &mut [f32],
    ) {
        for (k, row) in depth.enumerate() {
            widen(unit, &self.row(row)[columns.clone()], line);
            unit.run(Spread { k, line: &line[..columns.len()], block });
        }
    }
}

/// Whether the unit reads rows of `T` in pairs.
struct Paired<T>(core::marker::PhantomData<T>);

impl<T: Float> Job for Paired<T> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        <T as Lanes>::slots::<S>() < T::STEP
    }
}

/// Deals a line out to the tiles.
struct Spread<'a> {
    k: usize,
    line: &'a [f32],
    block: &'a mut [f32],
}

impl Job for Spread<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (part, tile) in self.line.chunks(S::ROWS).zip(self.block.chunks_exact_mut(S::ROWS * BLOCK)) {
            let place = &mut tile[self.k * S::ROWS..][..S::ROWS];
            if part.len() == S::ROWS {
                place.copy_from_slice(part);
            } else {
                place[..part.len()].copy_from_slice(part);
            }
        }
    }
}
