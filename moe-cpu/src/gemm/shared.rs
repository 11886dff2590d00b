//! A buffer that tasks write side by side.

use super::isa::Unit;
use super::rows::near;
use core::marker::PhantomData;
use core::ops::Range;

/// Some columns of some rows of a buffer, for one task to write.
pub(crate) struct Rectangle<'a> {
    start: *mut f32,
    pitch: usize,
    rows: usize,
    columns: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl Rectangle<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// From one row to the next.
    pub(crate) fn pitch(&self) -> usize {
        self.pitch
    }

    /// The first column of row `row`, which must be one of its rows.
    pub(crate) fn row(&self, row: usize) -> *mut f32 {
        assert!(row < self.rows, "a row lies outside its rectangle");
        self.start.wrapping_add(row * self.pitch)
    }

    /// Writes or adds `values` to row `row`, from column `column` on.
    pub(crate) fn put(&mut self, row: usize, column: usize, values: &[f32], add: bool) {
        assert!(column + values.len() <= self.columns, "a column lies outside its rectangle");
        for (at, value) in values.iter().enumerate() {
            // SAFETY: inside the rectangle, by the assertions here and in `row`; it is this task's own.
            unsafe {
                let place = self.row(row).add(column + at);
                *place = if add { *place + value } else { *value };
            }
        }
    }

    /// The columns from `column` on.
    pub(crate) fn right_of(&mut self, column: usize) -> Rectangle<'_> {
        assert!(column <= self.columns, "a column lies outside its rectangle");
        Rectangle { start: self.start.wrapping_add(column), columns: self.columns - column, ..*self }
    }
}

/// An exclusively borrowed slice whose parts are handed to tasks, each part to one.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, of which `part` hands out pieces under its contract.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Asks for `range` to be brought near, as far as it lies inside.
    pub(crate) fn near(&self, unit: Unit, range: Range<usize>) {
        if range.end <= self.len {
            near(unit, self.start.wrapping_add(range.start), range.len());
        }
    }

    /// The elements of `range`, which must lie inside.
    ///
    /// # Safety
    /// No two parts that overlap are in use at a time.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies outside its buffer");
        // SAFETY: inside the borrowed slice, by the assertion, and not in use elsewhere, by the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl Shared<'_, f32> {
    /// `rows` rows of `columns` elements, `pitch` apart, of which the first begins at `start`. Must lie inside.
    ///
    /// # Safety
    /// Nothing that overlaps it is in use at a time.
    pub(crate) unsafe fn rectangle(
        &self,
        start: usize,
        pitch: usize,
        [rows, columns]: [usize; 2],
    ) -> Rectangle<'_> {
        let end = if rows == 0 { start } else { start + (rows - 1) * pitch + columns };
        assert!(columns <= pitch && end <= self.len, "a rectangle lies outside its buffer");
        Rectangle { start: self.start.wrapping_add(start), pitch, rows, columns, life: PhantomData }
    }
}
