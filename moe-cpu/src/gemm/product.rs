//! The product of one task: some rows of a group times some of its columns, into sums in scratch memory.

use super::float::Float;
use super::isa::Unit;
use super::left::Rows;
use super::matrix::Held;
use super::panel::{Size, Weights};
use super::scratch::{Scratch, bytes};
use super::tasks::MAX_ROWS;
use super::tile::{BLOCK, Layout, Tiles, depth};
use core::ops::Range;

/// Most columns of a task, all parts together.
pub(crate) const MAX_COLUMNS: usize = 1024;
/// Columns of a task of [`MAX_ROWS`] rows; one of fewer rows takes as many more.
pub(crate) const COLUMNS: usize = 256;
/// Most runs of columns in a task: the gate half and the up half.
const PARTS: usize = 2;

/// What is multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a, T> {
    pub(crate) unit: Unit,
    pub(crate) left: Rows<'a, T>,
    pub(crate) weights: Weights<'a, T>,
    pub(crate) size: Size,
}

/// A worker's scratch memory, and the sums that [`Product::run`] leaves in it.
pub(crate) struct Space<'a, T> {
    left: &'a mut [f32],
    panel: &'a mut [T],
    sums: &'a mut [f32],
    /// columns of whole panels
    pitch: usize,
    /// where the second part's panels begin
    split: usize,
    /// each part's columns, counted from its first panel
    parts: [Range<usize>; PARTS],
    held: Held,
}

/// Columns of sums that tasks of [`MAX_ROWS`] rows need: each part may begin and end inside a panel.
fn most_columns(unit: Unit) -> usize {
    COLUMNS + PARTS * 2 * unit.cols()
}

impl<'a, T: Float> Space<'a, T> {
    /// Bytes that [`new`](Space::new) takes.
    pub(crate) fn bytes(unit: Unit) -> usize {
        bytes::<f32>(MAX_ROWS * BLOCK)
            + bytes::<T>(BLOCK * unit.cols() + T::BEHIND)
            + bytes::<f32>(MAX_ROWS * most_columns(unit))
    }

    /// Takes its memory from `scratch`.
    pub(crate) fn new(unit: Unit, scratch: &mut Scratch<'a>) -> Self {
        Self {
            left: scratch.take(MAX_ROWS * BLOCK),
            panel: scratch.take(BLOCK * unit.cols() + T::BEHIND),
            sums: scratch.take(MAX_ROWS * most_columns(unit)),
            pitch: 0,
            split: 0,
            parts: [0..0, 0..0],
            held: Held::new(unit),
        }
    }

    /// The sums of row `row` of the task, a slice for each part.
    pub(crate) fn row(&mut self, row: usize) -> [&mut [f32]; PARTS] {
        let (first, second) = self.sums[row * self.pitch..][..self.pitch].split_at_mut(self.split);
        [&mut first[self.parts[0].clone()], &mut second[self.parts[1].clone()]]
    }
}

impl<T: Float> Product<'_, T> {
    /// Multiplies `rows` with the columns of `parts` of group `group`. The sums are found in `space`.
    pub(crate) fn run(
        &self,
        group: usize,
        rows: Range<usize>,
        parts: [Range<usize>; PARTS],
        space: &mut Space<'_, T>,
    ) {
        let (unit, size, cols) = (self.unit, self.size, self.unit.cols());
        let panels = parts
            .clone()
            .map(|part| if part.is_empty() { 0..0 } else { part.start / cols..part.end.div_ceil(cols) });
        space.split = panels[0].len() * cols;
        space.pitch = space.split + panels[1].len() * cols;
        for ((place, part), panels) in space.parts.iter_mut().zip(parts).zip(&panels) {
            *place = part.start - panels.start * cols..part.end - panels.start * cols;
        }
        let deep = depth::<T>(unit);
        let blocks = size.k.div_ceil(deep).max(1);
        let depth = |block: usize| (block * deep).min(size.k)..size.k.min((block + 1) * deep);
        let all = || panels.iter().cloned().flatten();
        let first = all().next().unwrap_or(0);
        for block in 0..blocks {
            let here = depth(block);
            self.left.gather(unit, rows.clone(), here.clone(), space.left);
            // After the last panel comes the next block's first, or perhaps the panels of the next task.
            let then = if block + 1 < blocks { (first, depth(block + 1)) } else { (panels[0].end, depth(0)) };
            let next = all().skip(1).map(|panel| (panel, here.clone())).chain([then]);
            for (at, (panel, (next, soon))) in all().zip(next).enumerate() {
                unit.run(Tiles {
                    left: space.left,
                    layout: Layout::Rows,
                    rows: rows.len(),
                    panel: self.weights.panel(unit, size, (group, panel), here.clone(), space.panel),
                    steps: here.len().div_ceil(T::STEP),
                    sums: &mut space.sums[at * cols..],
                    pitch: space.pitch,
                    first: block == 0,
                    target: None,
                    ahead: self.weights.ahead(unit, size, (group, next), soon),
                    held: &space.held,
                });
            }
        }
    }
}
