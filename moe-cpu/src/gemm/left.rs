//! The left operand: rows picked by an index and widened into scratch memory, a block of k at a time.

use super::float::{Float, Lanes};
use super::isa::{Job, Unit};
use super::rows::{near, widen};
use super::simd::{SQUARE, Simd};
use super::tile::BLOCK;
use core::ops::Range;

/// How many rows ahead of its use a row is asked for.
const NEAR: usize = 4;

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

    /// Asks for a row that comes soon after `row`.
    fn near(&self, unit: Unit, row: usize, rows: &Range<usize>, columns: &Range<usize>) {
        let next = row + NEAR;
        if next < rows.end {
            let part = &self.row(next)[columns.clone()];
            near(unit, part.as_ptr(), part.len());
        }
    }

    /// Brings columns `depth` of `rows` into `block`, in the layout of [`Layout::Rows`](super::tile::Layout).
    pub(crate) fn gather(&self, unit: Unit, rows: Range<usize>, depth: Range<usize>, block: &mut [f32]) {
        let paired = unit.run(Paired::<T>(core::marker::PhantomData));
        for (row, place) in rows.clone().zip(block.chunks_exact_mut(BLOCK)) {
            self.near(unit, row, &rows, &depth);
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
        let steps = depth.len();
        for (k, row) in depth.clone().enumerate() {
            self.near(unit, row, &depth, &columns);
            widen(unit, &self.row(row)[columns.clone()], line);
            unit.run(Spread { k, steps, line, len: columns.len(), block });
        }
    }

    /// [`transpose`](Rows::transpose) for units that multiply pairs: two rows make one, an element of each in every place.
    pub(crate) fn transpose_pairs(
        &self,
        unit: Unit,
        depth: Range<usize>,
        columns: Range<usize>,
        line: &mut [f32],
        block: &mut [f32],
    ) {
        let steps = depth.len().div_ceil(2);
        for k in 0..steps {
            let row = |at: usize| (at < depth.end).then(|| &self.row(at)[columns.clone()]);
            self.near(unit, depth.start + 2 * k, &depth, &columns);
            self.near(unit, depth.start + 2 * k + 1, &depth, &columns);
            let pairs = bytemuck::cast_slice_mut(&mut line[..columns.len()]);
            unit.run(Pair { rows: [row(depth.start + 2 * k), row(depth.start + 2 * k + 1)], pairs });
            unit.run(Spread { k, steps, line, len: columns.len(), block });
        }
    }
}

impl<T: Float> Rows<'_, T> {
    /// As [`transpose_pairs`](Rows::transpose_pairs), in the layout of [`Layout::Rows`](super::tile::Layout) and for `steps` pairs,
    /// a multiple of [`SQUARE`]; those beyond the last are 0.
    pub(crate) fn turn_pairs(
        &self,
        unit: Unit,
        (depth, steps): (Range<usize>, usize),
        columns: Range<usize>,
        lines: &mut [f32],
        block: &mut [f32],
    ) {
        let len = columns.len().max(1).next_multiple_of(SQUARE);
        for step in (0..steps).step_by(SQUARE) {
            for (line, first) in
                lines.chunks_exact_mut(len).zip((depth.start + 2 * step..).step_by(2).take(SQUARE))
            {
                let row = |at: usize| (at < depth.end).then(|| &self.row(at)[columns.clone()]);
                self.near(unit, first, &depth, &columns);
                self.near(unit, first + 1, &depth, &columns);
                let pairs = bytemuck::cast_slice_mut(&mut line[..columns.len()]);
                unit.run(Pair { rows: [row(first), row(first + 1)], pairs });
            }
            unit.run(Turn { lines, len, step, block });
        }
    }
}

/// Turns a square of lines after the other: they become columns from `step` on.
struct Turn<'a> {
    /// [`SQUARE`] lines of `len`
    lines: &'a [f32],
    len: usize,
    step: usize,
    block: &'a mut [f32],
}

impl Job for Turn<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { lines, len, step, block } = self;
        assert!(len.is_multiple_of(SQUARE) && lines.len() >= SQUARE * len);
        assert!(step + SQUARE <= BLOCK && block.len() >= len * BLOCK);
        for column in (0..len).step_by(SQUARE) {
            // SAFETY: a square of the lines begins at `column`; its columns become rows of the block, `BLOCK` apart.
            unsafe {
                let (from, to) = (lines.as_ptr().add(column), block.as_mut_ptr().add(column * BLOCK + step));
                s.turn(from.cast(), len * size_of::<f32>(), to.cast(), BLOCK * size_of::<f32>());
            }
        }
    }
}

/// An element of each of two rows, in turns; a row that is not there is 0.
pub(crate) struct Pair<'a, T> {
    pub(crate) rows: [Option<&'a [T]>; 2],
    pub(crate) pairs: &'a mut [T],
}

impl<T: Float> Job for Pair<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { rows: [first, second], pairs } = self;
        let (places, _) = pairs.as_chunks_mut::<2>();
        match (first, second) {
            (Some(first), Some(second)) => {
                for (place, (first, second)) in places.iter_mut().zip(first.iter().zip(second)) {
                    *place = [*first, *second];
                }
            }
            (Some(first), None) => {
                places.iter_mut().zip(first).for_each(|(place, first)| *place = [*first, T::default()]);
            }
            _ => pairs.fill(T::default()),
        }
    }
}

/// Whether the unit reads rows of `T` in pairs.
pub(crate) struct Paired<T>(pub(crate) core::marker::PhantomData<T>);

impl<T: Float> Job for Paired<T> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        <T as Lanes>::slots::<S>() < T::STEP
    }
}

/// Deals a line out to the tiles, as their step `k`.
struct Spread<'a> {
    k: usize,
    steps: usize,
    /// `len` values, and a vector more
    line: &'a [f32],
    len: usize,
    block: &'a mut [f32],
}

impl Job for Spread<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { k, steps, line, len, block } = self;
        let tiles = len.div_ceil(S::ROWS);
        assert!(k < steps && line.len() >= len + S::LANES);
        assert!(block.len() >= tiles * S::ROWS * steps);
        for tile in 0..tiles {
            let (from, place) = (tile * S::ROWS, (tile * steps + k) * S::ROWS);
            if S::ROWS > S::LANES {
                // A tile of several vectors; the length of a whole one is a constant.
                if let Some(whole) = line[..len].get(from..from + S::ROWS) {
                    block[place..place + S::ROWS].copy_from_slice(whole);
                    continue;
                }
            } else if k + 1 < steps {
                // SAFETY: a step follows, so what a vector holds beyond this one falls on it, which is yet to be written.
                unsafe {
                    let vector = s.load(line.as_ptr().add(from));
                    if place + S::LANES <= block.len() {
                        s.store(vector, block.as_mut_ptr().add(place));
                        continue;
                    }
                }
            }
            let part = S::ROWS.min(len - from);
            block[place..place + part].copy_from_slice(&line[from..from + part]);
        }
    }
}
