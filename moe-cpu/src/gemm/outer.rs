//! Sums of outer products of rows: the inner part of the weight gradients.

use super::float::Float;
use super::isa::{Job, Unit};
use super::left::{Pair, Paired, Rows};
use super::matrix::{Held, tiled};
use super::rows::{fence, widen};
use super::scratch::{Scratch, bytes};
use super::shared::Rectangle;
use super::simd::{SQUARE, Simd, TILE};
use super::tasks::MAX_ROWS;
use super::tile::{BLOCK, Layout, Leave, Target, Tiles};
use core::marker::PhantomData;
use core::ops::Range;
use half::bf16;

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

/// Elements of the panels of a task: a part of a second-level cache.
const PANELS: usize = BLOCK * 256;

/// Columns of the right operand that a task takes where each row has `columns` and the largest group has `depth` rows, of which
/// [`BLOCK`] are summed at a time: as many as panels have room for.
pub(crate) fn width(unit: Unit, depth: usize, columns: usize) -> usize {
    let cols = unit.cols();
    // Rows may be summed in pairs, of which a matrix unit wants whole tiles.
    let least = if tiled::<bf16>(unit) { 2 * TILE } else { 2 };
    let most = PANELS / depth.clamp(least, BLOCK).next_multiple_of(least) / cols * cols;
    columns.div_ceil(columns.div_ceil(most).max(1)).next_multiple_of(cols)
}

/// A worker's scratch memory.
pub(crate) struct OuterSpace<'a> {
    left: &'a mut [f32],
    panels: &'a mut [f32],
    /// The rows and columns of the right operand that the panels hold, all of a group's.
    held: Option<(Range<usize>, Range<usize>)>,
    sums: &'a mut [f32],
    /// Columns of rows, widened or in pairs: of one and room for a vector, or as many as make a square.
    lines: &'a mut [f32],
    matrix: Held,
}

impl<'a> OuterSpace<'a> {
    /// Bytes that [`new`](OuterSpace::new) takes.
    pub(crate) fn bytes() -> usize {
        bytes::<f32>(MAX_ROWS * BLOCK)
            + bytes::<f32>(PANELS + 1)
            + bytes::<f32>(MAX_ROWS * PANELS / BLOCK)
            + bytes::<f32>(SQUARE * MAX_ROWS)
    }

    /// Takes its memory from `scratch`.
    pub(crate) fn new(unit: Unit, scratch: &mut Scratch<'a>) -> Self {
        Self {
            left: scratch.take(MAX_ROWS * BLOCK),
            panels: scratch.take(PANELS + 1),
            held: None,
            sums: scratch.take(MAX_ROWS * PANELS / BLOCK),
            lines: scratch.take(SQUARE * MAX_ROWS),
            matrix: Held::new(unit),
        }
    }
}

impl<T: Float> Outer<'_, T> {
    /// Sums over `rows`, for `left` columns of the one operand and `right` columns of the other, and sends the sums to `place`.
    pub(crate) fn run(
        &self,
        rows: Range<usize>,
        left: Range<usize>,
        right: Range<usize>,
        (mut place, leave): (Rectangle<'_>, Leave),
        space: &mut OuterSpace<'_>,
    ) {
        let (unit, cols) = (self.unit, self.unit.cols());
        // Factors are f32, so they do not go into pairs of the storage type.
        let paired = self.factors.is_none() && unit.run(Paired::<T>(PhantomData));
        let layout = if paired && tiled::<T>(unit) { Layout::Rows } else { Layout::Columns };
        let blocks = rows.len().div_ceil(BLOCK).max(1);
        // Sums that go on in a next block lie beside each other; else those of the last panel alone are kept, if it is not whole.
        let all = right.len().next_multiple_of(cols);
        let (pitch, apart) = if blocks > 1 { (all, 1) } else { (cols, 0) };
        let here = Some((rows.clone(), right.clone()));
        let held = blocks == 1 && space.held == here;
        for block in 0..blocks {
            let start = rows.start + block * BLOCK;
            let depth = start..rows.end.min(start + BLOCK);
            let steps = match (paired, layout) {
                (true, Layout::Rows) => depth.len().div_ceil(2).max(1).next_multiple_of(TILE),
                (true, Layout::Columns) => depth.len().div_ceil(2),
                (false, _) => depth.len(),
            };
            // Each row is read once from one end to the other, and dealt out to all panels.
            if paired {
                let (rows, columns, lines) = (depth.clone(), left.clone(), &mut *space.lines);
                match layout {
                    Layout::Rows => self.left.turn_pairs(unit, (rows, steps), columns, lines, space.left),
                    Layout::Columns => self.left.transpose_pairs(unit, rows, columns, lines, space.left),
                }
                if !held {
                    self.gather_pairs(depth, steps, right.clone(), bytemuck::cast_slice_mut(space.panels));
                }
            } else {
                self.left.transpose(unit, depth.clone(), left.clone(), space.lines, space.left);
                if !held {
                    unit.run(Gather { outer: self, depth, columns: right.clone(), panels: space.panels });
                }
            }
            for at in (0..all).step_by(cols) {
                // Sums of whole panels leave from the registers when they are complete.
                let direct = block + 1 == blocks && at + cols <= right.len();
                let tiles = Panel {
                    left: space.left,
                    layout,
                    held: &space.matrix,
                    rows: left.len(),
                    steps,
                    sums: &mut space.sums[at * apart..],
                    pitch,
                    first: block == 0,
                    target: direct.then(|| Target { place: place.right_of(at), leave }),
                };
                if paired {
                    tiles.multiply::<T>(unit, &bytemuck::cast_slice(space.panels)[2 * at * steps..]);
                } else {
                    tiles.multiply::<f32>(unit, &space.panels[at * steps..]);
                }
            }
        }
        // Sums may have been streamed.
        fence(unit);
        space.held = here.filter(|_| blocks == 1);
        let rest = right.len() % cols;
        if rest > 0 {
            let start = right.len() - rest;
            for row in 0..left.len() {
                let sums = &space.sums[row * pitch + start * apart..][..rest];
                place.put(row, start, sums, leave == Leave::Add);
            }
        }
    }

    /// Makes panels of pairs of rows, a step for each pair; steps beyond the last are 0.
    fn gather_pairs(&self, depth: Range<usize>, steps: usize, columns: Range<usize>, panels: &mut [T]) {
        let cols = self.unit.cols();
        for step in 0..steps {
            let row = |row: usize| (row < depth.end).then(|| &self.right.row(row)[columns.clone()]);
            let rows = [row(depth.start + 2 * step), row(depth.start + 2 * step + 1)];
            for at in (0..columns.len()).step_by(cols) {
                let part = at..columns.len().min(at + cols);
                let pairs = &mut panels[2 * (at * steps + step * cols)..][..2 * cols];
                pairs[2 * part.len()..].fill(T::default());
                let pairs = &mut pairs[..2 * part.len()];
                self.unit.run(Pair { rows: rows.map(|row| row.map(|row| &row[part.clone()])), pairs });
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

/// What is multiplied by one panel, and where the sums go.
struct Panel<'a> {
    left: &'a [f32],
    layout: Layout,
    held: &'a Held,
    rows: usize,
    steps: usize,
    sums: &'a mut [f32],
    pitch: usize,
    first: bool,
    target: Option<Target<'a>>,
}

impl Panel<'_> {
    fn multiply<P: Float>(self, unit: Unit, panel: &[P]) {
        let Self { left, layout, held, rows, steps, sums, pitch, first, target } = self;
        unit.run(Tiles { left, layout, rows, panel, steps, sums, pitch, first, target, ahead: &[], held });
    }
}

/// Makes f32 panels of `columns` of the right operand's rows.
struct Gather<'a, 'b, T> {
    outer: &'a Outer<'b, T>,
    depth: Range<usize>,
    columns: Range<usize>,
    panels: &'a mut [f32],
}

impl<T: Float> Job for Gather<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { outer, depth, columns, panels } = self;
        let steps = depth.len();
        assert!(panels.len() >= steps * columns.len().next_multiple_of(S::COLS));
        for (step, row) in depth.enumerate() {
            let from = &outer.right.row(row)[columns.clone()];
            let factor = outer.factors.map_or(1.0, |factors| factors.of(row));
            let whole = from.len() - from.len() % S::COLS;
            for at in (0..whole).step_by(S::LANES) {
                let place = at / S::COLS * steps * S::COLS + step * S::COLS + at % S::COLS;
                // SAFETY: `at + LANES` is at most the row's length, and the panels hold `steps` steps of each column.
                unsafe {
                    let value = T::load(s, from.as_ptr().add(at));
                    s.store(s.mul(value, s.splat(factor)), panels.as_mut_ptr().add(place));
                }
            }
            if whole < from.len() {
                let place = &mut panels[whole * steps + step * S::COLS..][..S::COLS];
                place.fill(0.0);
                place.iter_mut().zip(&from[whole..]).for_each(|(place, from)| *place = factor * from.widen());
            }
        }
    }
}
