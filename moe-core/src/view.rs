//! Views: a device's memory and a range of it that is known to lie inside.

use crate::device::Device;
use crate::error::{OpId, ShapeError};
use crate::scalar::Elem;
use core::borrow::{Borrow, BorrowMut};
use core::ops::Range;

/// A shared view of elements in memory `M`.
pub struct View<'a, M: ?Sized> {
    mem: &'a M,
    start: usize,
    len: usize,
}

/// An exclusive view of elements in memory `M`.
pub struct ViewMut<'a, M: ?Sized> {
    mem: &'a mut M,
    start: usize,
    len: usize,
}

/// What an op reads.
pub type In<'a, D, T> = View<'a, <D as Device>::Mem<T>>;
/// What an op writes, or reads and writes.
pub type Out<'a, D, T> = ViewMut<'a, <D as Device>::Mem<T>>;

impl<M: ?Sized> Clone for View<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M: ?Sized> Copy for View<'_, M> {}

fn inside(range: &Range<usize>, len: usize) -> Result<(), ShapeError> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    Err(ShapeError::Length { op: OpId("view"), what: "range", want: len, got: range.end.max(range.start) })
}

impl<'a, M: ?Sized> View<'a, M> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory and the range of it, for backends.
    pub fn parts(self) -> (&'a M, Range<usize>) {
        (self.mem, self.start..self.start + self.len)
    }

    /// A part of the view.
    ///
    /// # Errors
    /// [`ShapeError`] if the range does not lie inside the view.
    pub fn slice(self, range: Range<usize>) -> Result<Self, ShapeError> {
        inside(&range, self.len)?;
        Ok(Self { mem: self.mem, start: self.start + range.start, len: range.len() })
    }
}

impl<'a, M: ?Sized> ViewMut<'a, M> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory and the range of it, for backends.
    pub fn parts(self) -> (&'a mut M, Range<usize>) {
        (self.mem, self.start..self.start + self.len)
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, M> {
        ViewMut { mem: self.mem, start: self.start, len: self.len }
    }

    /// A shared view of the same elements.
    pub fn read(&self) -> View<'_, M> {
        View { mem: self.mem, start: self.start, len: self.len }
    }

    /// A part of the view.
    ///
    /// # Errors
    /// [`ShapeError`] if the range does not lie inside the view.
    pub fn slice(self, range: Range<usize>) -> Result<Self, ShapeError> {
        inside(&range, self.len)?;
        Ok(Self { mem: self.mem, start: self.start + range.start, len: range.len() })
    }
}

impl<'a, T> View<'a, [T]> {
    /// A view of a whole slice.
    pub fn of(slice: &'a [T]) -> Self {
        Self { mem: slice, start: 0, len: slice.len() }
    }

    /// The elements, where device memory is a slice.
    pub fn host(self) -> &'a [T] {
        &self.mem[self.start..self.start + self.len]
    }
}

impl<'a, T> ViewMut<'a, [T]> {
    /// A view of a whole slice.
    pub fn of(slice: &'a mut [T]) -> Self {
        Self { start: 0, len: slice.len(), mem: slice }
    }

    /// The elements, where device memory is a slice.
    pub fn host(self) -> &'a mut [T] {
        &mut self.mem[self.start..self.start + self.len]
    }
}

/// A view of all elements of a buffer.
pub fn whole<D: Device, T: Elem>(buffer: &D::Owned<T>) -> In<'_, D, T> {
    let mem: &D::Mem<T> = buffer.borrow();
    View { start: 0, len: D::len(mem), mem }
}

/// An exclusive view of all elements of a buffer.
pub fn whole_mut<D: Device, T: Elem>(buffer: &mut D::Owned<T>) -> Out<'_, D, T> {
    let mem: &mut D::Mem<T> = buffer.borrow_mut();
    ViewMut { start: 0, len: D::len(mem), mem }
}

/// A view of the first `len` elements of a buffer.
///
/// # Errors
/// [`ShapeError`] if the buffer is shorter.
pub fn first<D: Device, T: Elem>(buffer: &D::Owned<T>, len: usize) -> Result<In<'_, D, T>, ShapeError> {
    whole::<D, T>(buffer).slice(0..len)
}

/// An exclusive view of the first `len` elements of a buffer.
///
/// # Errors
/// [`ShapeError`] if the buffer is shorter.
pub fn first_mut<D: Device, T: Elem>(
    buffer: &mut D::Owned<T>,
    len: usize,
) -> Result<Out<'_, D, T>, ShapeError> {
    whole_mut::<D, T>(buffer).slice(0..len)
}
