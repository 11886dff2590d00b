//! Products whose rows are stored where an index says: y and dx.

use super::float::Float;
use super::grouped::Crew;
use super::outer::Factors;
use super::product::{MAX_COLUMNS, Product, Space};
use super::rows::{narrow, scale, widen};
use super::scratch::{SLACK, Scratch, bytes};
use super::shared::Shared;
use super::tasks::Task;
use moe_core::{OpId, ShapeError, check_index};

/// Where and how the rows of a product are stored.
pub(crate) struct Store<'a, T> {
    /// (rows, n)
    pub(crate) out: &'a mut [T],
    /// Row r is stored at `index[r]`; all different.
    pub(crate) index: Option<&'a [u32]>,
    /// (groups, n), divided by the number beside it and added
    pub(crate) bias: Option<(&'a [T], f32)>,
    /// Row r is multiplied by its factor.
    pub(crate) factors: Option<Factors<'a>>,
}

impl<T: Float> Store<'_, T> {
    /// Bytes of scratch that [`run`](Store::run) needs for `rows` rows.
    pub(crate) fn bytes(crew: &Crew, rows: usize) -> usize {
        crew.bytes::<T>(bytes::<f32>(MAX_COLUMNS)) + bytes::<u8>(rows.div_ceil(8)) + SLACK
    }

    /// Multiplies the rows of all groups and stores them.
    ///
    /// # Errors
    /// [`ShapeError`] if the index names a row that is not there, or names one twice.
    pub(crate) fn run(
        self,
        crew: &Crew,
        op: OpId,
        product: &Product<'_, T>,
        offsets: &[u32],
        scratch: &mut [u8],
    ) -> Result<(), ShapeError> {
        let (columns, used) = (product.size.n, offsets.last().map_or(0, |last| *last as usize));
        let rows = self.out.len().checked_div(columns).unwrap_or(0);
        let mut scratch = Scratch::new(scratch);
        if let Some(index) = self.index {
            check_index(op, "out_index", &index[..used], rows)?;
            check_distinct(op, &index[..used], scratch.take(rows.div_ceil(8)))?;
        }
        let Self { out, index, bias, factors } = self;
        let (unit, out) = (crew.unit, Shared::new(out));
        let finish = |task: &Task, space: &mut Space<'_, T>, mut scratch: Scratch<'_>| {
            let (start, len) = (task.columns.start, task.columns.len());
            let line = &mut scratch.take::<f32>(MAX_COLUMNS)[..len];
            if let Some((bias, share)) = bias {
                widen(unit, &bias[task.group * columns + start..][..len], line);
                line.iter_mut().for_each(|value| *value /= share);
            }
            for (at, row) in task.rows.clone().enumerate() {
                let [sums, _] = space.row(at);
                let factor = factors.map_or(1.0, |factors| factors.of(row));
                if bias.is_some() || factors.is_some() {
                    scale(unit, factor, sums, bias.is_some().then_some(&*line));
                }
                let place = |row: usize| index.map_or(row, |index| index[row] as usize) * columns + start;
                if let Some(next) = task.soon(row) {
                    let place = place(next);
                    out.near(unit, place..place + len);
                }
                let place = place(row);
                // SAFETY: each task has its own columns of its own rows, and no two rows are stored at one place.
                narrow(unit, sums, unsafe { out.part(place..place + len) });
            }
        };
        let extra = bytes::<f32>(MAX_COLUMNS);
        crew.grouped(product, offsets, (1, columns), (scratch.rest(), extra), finish);
        Ok(())
    }
}

/// No entry of `index` may come twice: two threads would write one row. `seen` has a bit for each row.
fn check_distinct(op: OpId, index: &[u32], seen: &mut [u8]) -> Result<(), ShapeError> {
    seen.fill(0);
    for &row in index {
        let (byte, bit) = (&mut seen[row as usize / 8], 1 << (row % 8));
        if *byte & bit != 0 {
            return Err(ShapeError::Combination { op, what: "out_index", why: "names a row twice" });
        }
        *byte |= bit;
    }
    Ok(())
}
