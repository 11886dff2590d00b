//! Dealing tasks out to threads.

use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};

/// The tasks that one worker takes, in ascending order: the next free number each time.
pub(crate) struct Queue<'a> {
    next: &'a AtomicUsize,
    total: usize,
}

impl Iterator for Queue<'_> {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        // Only the number counts; the join orders the workers' memory.
        let task = self.next.fetch_add(1, Ordering::Relaxed);
        (task < self.total).then_some(task)
    }
}

/// Runs `total` tasks on at most `workers` workers of the present thread pool. Each worker gets `each` bytes of `scratch`.
pub(crate) fn share<W>(workers: usize, total: usize, scratch: &mut [u8], each: usize, work: W)
where
    W: Fn(Queue<'_>, &mut [u8]) + Sync,
{
    fn fork<W>(workers: usize, total: usize, next: &AtomicUsize, scratch: &mut [u8], each: usize, work: &W)
    where
        W: Fn(Queue<'_>, &mut [u8]) + Sync,
    {
        if workers <= 1 {
            return work(Queue { next, total }, &mut scratch[..each]);
        }
        let half = workers / 2;
        let (left, right) = scratch.split_at_mut(half * each);
        rayon::join(
            || fork(half, total, next, left, each, work),
            || fork(workers - half, total, next, right, each, work),
        );
    }
    if total > 0 {
        fork(workers.min(total), total, &AtomicUsize::new(0), scratch, each, &work);
    }
}

/// Most rows of a task: their part of the left operand, and their sums, fill half of a second-level cache.
pub(crate) const MAX_ROWS: usize = 144;
/// A multiple of the tile heights of all units.
const EVEN: usize = 12;

/// The tasks of a grouped product: blocks of a group's rows times blocks of columns.
#[derive(Clone, Copy)]
pub(crate) struct Grid<'a> {
    /// where each group's rows begin and end
    pub(crate) offsets: &'a [u32],
    /// columns of the result
    pub(crate) columns: usize,
    /// columns of a task
    pub(crate) width: usize,
}

/// One task of a [`Grid`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) group: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
}

/// How many rows ahead of its turn a row's places are asked for.
const SOON: usize = 2;

impl Task {
    /// The row whose places may be asked for while `row` is finished.
    pub(crate) fn soon(&self, row: usize) -> Option<usize> {
        Some(row + SOON).filter(|next| *next < self.rows.end)
    }
}

impl Grid<'_> {
    /// Rows of a group's blocks, and how many there are.
    fn blocks(&self, group: usize) -> (usize, usize) {
        let rows = (self.offsets[group + 1] - self.offsets[group]) as usize;
        let height = rows.div_ceil(rows.div_ceil(MAX_ROWS).max(1)).next_multiple_of(EVEN).min(MAX_ROWS);
        (height, rows.div_ceil(height.max(1)))
    }

    fn tasks(&self, group: usize) -> usize {
        self.blocks(group).1 * self.columns.div_ceil(self.width)
    }

    /// Number of tasks.
    pub(crate) fn total(&self) -> usize {
        (0..self.offsets.len() - 1).map(|group| self.tasks(group)).sum()
    }

    /// The tasks of these numbers, which ascend.
    pub(crate) fn select<'g>(
        &'g self,
        numbers: impl Iterator<Item = usize> + 'g,
    ) -> impl Iterator<Item = Task> + 'g {
        let (mut group, mut before) = (0, 0);
        numbers.map(move |number| {
            while number - before >= self.tasks(group) {
                before += self.tasks(group);
                group += 1;
            }
            let (height, blocks) = self.blocks(group);
            let (row, column) =
                ((number - before) % blocks * height, (number - before) / blocks * self.width);
            let (start, end) = (self.offsets[group] as usize, self.offsets[group + 1] as usize);
            Task {
                group,
                rows: start + row..end.min(start + row + height),
                columns: column..self.columns.min(column + self.width),
            }
        })
    }
}
