//! Memory of tensors: zeroed, on cache lines, in huge pages where they pay.

use moe_core::Elem;
use std::alloc::{Layout, alloc, dealloc};
use std::borrow::{Borrow, BorrowMut};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What every buffer starts on: a cache line, and the widest vector.
const LINE: usize = 64;
/// A huge page. Buffers of at least this size start on one.
const HUGE: usize = 2 << 20;

/// Owned elements, aligned to 64 bytes.
pub struct Buffer<T> {
    start: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: a buffer owns its elements, like a `Vec`.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Buffer<T> {}

fn layout<T>(len: usize) -> Option<Layout> {
    let bytes = len.checked_mul(size_of::<T>())?;
    let align = if bytes >= HUGE { HUGE } else { LINE };
    Layout::from_size_align(bytes, align.max(align_of::<T>())).ok()
}

impl<T: Elem> Buffer<T> {
    /// `len` zeros; `None` if there is no room for them.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        let layout = layout::<T>(len)?;
        let owns = PhantomData;
        if layout.size() == 0 {
            // No memory, but as well aligned as any other buffer.
            let start = NonNull::new(std::ptr::without_provenance_mut(LINE))?;
            return Some(Self { start, len, owns });
        }
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        advise(start, layout);
        // SAFETY: the memory was just allocated with this size.
        unsafe { start.write_bytes(0, layout.size()) };
        Some(Self { start: start.cast(), len, owns })
    }
}

/// Asks for huge pages before the memory is first touched. A refusal costs speed only.
fn advise(start: NonNull<u8>, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.size() >= HUGE {
        // SAFETY: the range was just allocated; the advice changes no contents.
        unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, layout);
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(layout) = layout::<T>(self.len)
            && layout.size() > 0
        {
            // SAFETY: allocated in `zeroed` with the same layout. Elements are plain data and need no drop.
            unsafe { dealloc(self.start.cast().as_ptr(), layout) };
        }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements were allocated and zeroed, which is a value of any plain data type.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the exclusive borrow of the buffer is one of its elements.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Borrow<[T]> for Buffer<T> {
    fn borrow(&self) -> &[T] {
        self
    }
}

impl<T> BorrowMut<[T]> for Buffer<T> {
    fn borrow_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<T: fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        for len in [0, 1, 63, HUGE, HUGE + 3] {
            let buffer = Buffer::<u8>::zeroed(len).unwrap();
            assert_eq!((buffer.len(), buffer.iter().all(|byte| *byte == 0)), (len, true));
            assert!((buffer.as_ptr() as usize).is_multiple_of(LINE));
        }
    }

    #[test]
    fn a_size_that_does_not_fit_is_refused() {
        assert!(Buffer::<f32>::zeroed(usize::MAX).is_none());
        assert!(Buffer::<f32>::zeroed(isize::MAX as usize / 4 - HUGE).is_none());
    }
}
