//! A buffer that tasks write side by side.

use core::marker::PhantomData;
use core::ops::Range;

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
