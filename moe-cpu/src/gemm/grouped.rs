//! A grouped product from its tasks to its last column: what the four expert products share.

use super::float::Float;
use super::isa::{Isa, Unit};
use super::panel::Weights;
use super::product::{COLUMNS, MAX_COLUMNS, Product, Space};
use super::scratch::{SLACK, Scratch};
use super::tasks::{Grid, MAX_ROWS, Task, share};
use crate::device::Cpu;
use moe_core::Path;

/// Who works: a vector unit on each of some threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crew {
    pub(crate) unit: Unit,
    pub(crate) threads: usize,
}

/// Tasks wanted for each thread, so that the last ones to finish are not far apart.
const TASKS_PER_THREAD: usize = 4;
/// A task's columns are a multiple of this, whatever the number of threads, so that sums over
/// columns can be made of the same pieces always.
pub(crate) const CHUNK: usize = 64;

impl Crew {
    /// All threads of `cpu`.
    pub(crate) fn of(cpu: &Cpu) -> Self {
        Self { unit: cpu.unit(), threads: cpu.threads() }
    }

    /// Bytes of scratch that [`grouped`](Crew::grouped) needs, with `extra` bytes for each thread's own use.
    pub(crate) fn bytes<T: Float>(&self, extra: usize) -> usize {
        self.threads * self.each::<T>(extra)
    }

    fn each<T: Float>(&self, extra: usize) -> usize {
        Space::<T>::bytes(self.unit) + extra + SLACK
    }

    /// Multiplies all groups. `columns` is the width of one part; with two parts the second begins `columns` further right.
    /// `finish` gets each task with its sums, and `extra` bytes.
    pub(crate) fn grouped<T: Float>(
        &self,
        product: &Product<'_, T>,
        offsets: &[u32],
        (parts, columns): (usize, usize),
        (scratch, extra): (&mut [u8], usize),
        finish: impl Fn(&Task, &mut Space<'_, T>, Scratch<'_>) + Sync,
    ) {
        // Few rows are gathered for many columns, as far as their sums have room.
        let rows = offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0);
        let most = (MAX_ROWS * COLUMNS / rows.clamp(1, MAX_ROWS)).min(MAX_COLUMNS) / parts / CHUNK * CHUNK;
        let mut grid = Grid { offsets, columns, width: even(columns, columns.div_ceil(most)) };
        while grid.width > CHUNK && grid.total() < TASKS_PER_THREAD * self.threads {
            grid.width = even(grid.width, 2);
        }
        share(self.threads, grid.total(), scratch, self.each::<T>(extra), |queue, scratch| {
            let mut scratch = Scratch::new(scratch);
            let mut space = Space::new(self.unit, &mut scratch);
            for task in grid.select(queue) {
                let second =
                    if parts == 2 { columns + task.columns.start..columns + task.columns.end } else { 0..0 };
                product.run(task.group, task.rows.clone(), [task.columns.clone(), second], &mut space);
                finish(&task, &mut space, scratch.again());
            }
        });
    }
}

/// Columns of one of `parts` parts of `columns`, in whole chunks.
fn even(columns: usize, parts: usize) -> usize {
    columns.div_ceil(parts.max(1)).next_multiple_of(CHUNK).max(CHUNK)
}

/// Which way a product took.
pub(crate) fn path<T: Float>(unit: Unit, weights: &Weights<'_, T>) -> Path {
    let packed = matches!(weights, Weights::Packed(_));
    Path(match (unit.isa(), packed) {
        (Isa::Amx, true) if T::STEP == 2 => "packed amx",
        (Isa::Amx, false) if T::STEP == 2 => "plain amx",
        (Isa::Avx512 { bf16: true }, true) if T::STEP == 2 => "packed avx512bf16",
        (Isa::Avx512 { bf16: true }, false) if T::STEP == 2 => "plain avx512bf16",
        (Isa::Amx | Isa::Avx512 { .. }, true) => "packed avx512",
        (Isa::Amx | Isa::Avx512 { .. }, false) => "plain avx512",
        (Isa::Avx2Fma, true) => "packed avx2",
        (Isa::Avx2Fma, false) => "plain avx2",
        (Isa::Neon, true) => "packed neon",
        (Isa::Neon, false) => "plain neon",
        (Isa::Portable, true) => "packed portable",
        (Isa::Portable, false) => "plain portable",
    })
}

/// Which way a sum of outer products of `T` took; with `factors` they are products of f32.
pub(crate) fn outer_path<T: Float>(unit: Unit, factors: bool) -> Path {
    Path(match unit.isa() {
        Isa::Amx if T::STEP == 2 && !factors => "outer amx",
        Isa::Avx512 { bf16: true } if T::STEP == 2 && !factors => "outer avx512bf16",
        Isa::Amx | Isa::Avx512 { .. } => "outer avx512",
        Isa::Avx2Fma => "outer avx2",
        Isa::Neon => "outer neon",
        Isa::Portable => "outer portable",
    })
}
