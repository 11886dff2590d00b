//! Scratch memory, cut into typed pieces.

use moe_core::Elem;

/// Pieces start on cache lines.
const LINE: usize = 64;

/// Bytes that a piece of `len` elements takes.
pub(crate) const fn bytes<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(LINE)
}

/// Bytes lost at most to find the first cache line.
pub(crate) const SLACK: usize = LINE;

/// Scratch memory that is left.
pub(crate) struct Scratch<'a>(&'a mut [u8]);

impl<'a> Scratch<'a> {
    /// All of `memory`, from its first cache line on.
    pub(crate) fn new(memory: &'a mut [u8]) -> Self {
        let skip = memory.as_ptr().align_offset(LINE).min(memory.len());
        Self(&mut memory[skip..])
    }

    /// A piece of `len` elements. Holds what was there before.
    pub(crate) fn take<T: Elem>(&mut self, len: usize) -> &'a mut [T] {
        let all = core::mem::take(&mut self.0);
        let (piece, rest) = all.split_at_mut(bytes::<T>(len));
        self.0 = rest;
        &mut bytemuck::cast_slice_mut(piece)[..len]
    }

    /// The memory that is left, to be cut up anew each time.
    pub(crate) fn again(&mut self) -> Scratch<'_> {
        Scratch(self.0)
    }

    /// The memory that is left, as bytes.
    pub(crate) fn rest(self) -> &'a mut [u8] {
        self.0
    }
}
