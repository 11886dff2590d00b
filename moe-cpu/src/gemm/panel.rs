//! The right operand: panels of `COLS` columns.
//!
//! A matrix of `n` columns and depth `k` is packed as `n / COLS` panels, rounded up; a panel is `k / STEP` steps, rounded
//! up; a step holds `COLS` columns of `STEP` neighbours in k. What lies outside the matrix is 0. A product reads a block of k of
//! each of its panels, then the next block; while it works on one it asks for the one that comes next.

use super::fill::pack;
use super::float::Float;
use super::isa::Unit;
use core::ops::Range;

/// How plain weights of a group lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// (n, k): a column of the product is a row of the weights. The forward products.
    ByColumn,
    /// (k, n): the backward products.
    ByDepth,
}

/// The size of every group's matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// columns of the product
    pub(crate) n: usize,
    /// what is summed over
    pub(crate) k: usize,
}

impl Size {
    /// Panels of a group.
    pub(crate) fn panels(self, unit: Unit) -> usize {
        self.n.div_ceil(unit.cols())
    }

    /// Elements of a packed panel.
    pub(crate) fn panel<T: Float>(self, unit: Unit) -> usize {
        self.k.next_multiple_of(T::STEP) * unit.cols()
    }

    /// Elements of a packed group. `BEHIND` more follow the last group.
    pub(crate) fn packed<T: Float>(self, unit: Unit) -> usize {
        self.panels(unit) * self.panel::<T>(unit)
    }
}

/// The weights of all groups.
#[derive(Clone, Copy)]
pub(crate) enum Weights<'a, T> {
    /// panels, made by [`pack`](super::fill::pack)
    Packed(&'a [T]),
    /// row-major; panels are made in scratch memory when they are used
    Plain(&'a [T], Order),
}

impl<'a, T: Float> Weights<'a, T> {
    /// k's `depth` of a panel of group `group`, and `BEHIND` elements. `room` holds that much for one block of k.
    pub(crate) fn panel<'b>(
        &self,
        unit: Unit,
        size: Size,
        (group, panel): (usize, usize),
        depth: Range<usize>,
        room: &'b mut [T],
    ) -> &'b [T]
    where
        'a: 'b,
    {
        let cols = unit.cols();
        let len = depth.len().next_multiple_of(T::STEP) * cols;
        match *self {
            Self::Packed(all) => {
                let start = group * size.packed::<T>(unit) + panel * size.panel::<T>(unit);
                &all[start + depth.start * cols..][..len + T::BEHIND]
            }
            Self::Plain(all, order) => {
                let matrix = &all[group * size.n * size.k..][..size.n * size.k];
                let columns = panel * cols..size.n.min((panel + 1) * cols);
                pack(unit, matrix, order, size, columns, depth, &mut room[..len]);
                &room[..len + T::BEHIND]
            }
        }
    }

    /// k's `depth` of a panel, as far as it is packed and there: what a product may ask for ahead.
    pub(crate) fn ahead(&self, unit: Unit, size: Size, at: (usize, usize), depth: Range<usize>) -> &'a [T] {
        let Self::Packed(all) = *self else { return &[] };
        let panel = at.0 * size.packed::<T>(unit) + at.1 * size.panel::<T>(unit);
        let place = |k: usize| (panel + k.next_multiple_of(T::STEP) * unit.cols()).min(all.len());
        &all[place(depth.start)..place(depth.end)]
    }
}
