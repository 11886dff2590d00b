//! Collective: what ranks of a group do together, in a fixed order, and `Solo`, the group of one.

use crate::device::Device;
use crate::error::{CollectiveError, CollectiveFault, OpId, ShapeError, expect};
use crate::reducible::Reducible;
use crate::scalar::Elem;
use crate::view::{In, Out};

/// How values of ranks are brought together; [`Reducible`] has the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reduce {
    /// sum in rank order in the accumulation type, rounded once
    Sum,
    /// largest
    Max,
}

/// One rank's end of a group. Every rank must call the same operations in the same order with matching shapes;
/// a mismatch is an error on every rank.
///
/// Operations are ordered on `stream`: what was put on it before has been done when they read, and what is put on it after
/// sees what they wrote. They may return before that, and an error may then come with a later call. After an error the
/// contents of what they write are unspecified, and every later call fails.
pub trait Collective<D: Device>: Send {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Every rank gets the reduction of all ranks' values.
    ///
    /// # Errors
    /// [`CollectiveError`], the same cause on every rank.
    fn all_reduce<T: Reducible>(
        &mut self,
        stream: &D::Stream,
        how: Reduce,
        values: Out<'_, D, T>,
    ) -> Result<(), CollectiveError>;

    /// Every rank gets all ranks' values in rank order; `counts[r]` elements come from rank r.
    ///
    /// # Errors
    /// [`CollectiveError`], the same cause on every rank.
    fn all_gather<T: Elem>(
        &mut self,
        stream: &D::Stream,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError>;

    /// Rank r gets the reduction of all ranks' r-th part; part r has `counts[r]` elements.
    ///
    /// # Errors
    /// [`CollectiveError`], the same cause on every rank.
    fn reduce_scatter<T: Reducible>(
        &mut self,
        stream: &D::Stream,
        how: Reduce,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError>;

    /// Sends `send[r]` elements to rank r and gets `receive[r]` from it, both in rank order.
    ///
    /// # Errors
    /// [`CollectiveError`], the same cause on every rank.
    fn all_to_all<T: Elem>(
        &mut self,
        stream: &D::Stream,
        source: In<'_, D, T>,
        send: &[usize],
        target: Out<'_, D, T>,
        receive: &[usize],
    ) -> Result<(), CollectiveError>;

    /// Every rank gets rank `root`'s values.
    ///
    /// # Errors
    /// [`CollectiveError`], the same cause on every rank.
    fn broadcast<T: Elem>(
        &mut self,
        stream: &D::Stream,
        root: usize,
        values: Out<'_, D, T>,
    ) -> Result<(), CollectiveError>;

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// [`CollectiveError`], the same cause on every rank.
    fn barrier(&mut self, stream: &D::Stream) -> Result<(), CollectiveError>;

    /// Makes every later call on this group fail at once, here and on the other ranks.
    fn abort(&mut self);
}

/// The group of one rank. Reductions leave values as they are; exchanges copy through `device`.
#[derive(Clone, Debug)]
pub struct Solo<D> {
    device: D,
    sequence: u64,
    aborted: bool,
}

impl<D: Device> Solo<D> {
    /// The group of this rank alone.
    pub fn new(device: &D) -> Self {
        Self { device: device.clone(), sequence: 0, aborted: false }
    }

    fn begin(&mut self, op: &'static str) -> Result<(), CollectiveError> {
        self.sequence += 1;
        if self.aborted { Err(self.failed(op, CollectiveFault::Aborted)) } else { Ok(()) }
    }

    fn failed(&self, op: &'static str, fault: CollectiveFault) -> CollectiveError {
        CollectiveError::new("solo", 0, op, self.sequence, fault)
    }

    fn shape(&self, op: &'static str, check: Result<(), ShapeError>) -> Result<(), CollectiveError> {
        check.map_err(|error| self.failed(op, CollectiveFault::Argument).because(error))
    }

    /// The one rank's exchange with itself: `counts` must name exactly the elements of both sides.
    fn copy<T: Elem>(
        &mut self,
        op: &'static str,
        stream: &D::Stream,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        counts: [&[usize]; 2],
    ) -> Result<(), CollectiveError> {
        self.begin(op)?;
        for counts in counts {
            self.shape(op, expect(OpId(op), "counts", &[1], counts.len()))?;
            self.shape(op, expect(OpId(op), "source", counts, source.len()))?;
        }
        self.shape(op, expect(OpId(op), "target", &[source.len()], target.len()))?;
        self.device
            .copy(stream, source, target)
            .map_err(|error| self.failed(op, CollectiveFault::Device).because(error))
    }
}

impl<D: Device> Collective<D> for Solo<D> {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce<T: Reducible>(
        &mut self,
        _: &D::Stream,
        _: Reduce,
        _: Out<'_, D, T>,
    ) -> Result<(), CollectiveError> {
        self.begin("all_reduce")
    }

    fn all_gather<T: Elem>(
        &mut self,
        stream: &D::Stream,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError> {
        self.copy("all_gather", stream, source, target, [counts; 2])
    }

    fn reduce_scatter<T: Reducible>(
        &mut self,
        stream: &D::Stream,
        _: Reduce,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError> {
        self.copy("reduce_scatter", stream, source, target, [counts; 2])
    }

    fn all_to_all<T: Elem>(
        &mut self,
        stream: &D::Stream,
        source: In<'_, D, T>,
        send: &[usize],
        target: Out<'_, D, T>,
        receive: &[usize],
    ) -> Result<(), CollectiveError> {
        self.copy("all_to_all", stream, source, target, [send, receive])
    }

    fn broadcast<T: Elem>(
        &mut self,
        _: &D::Stream,
        root: usize,
        _: Out<'_, D, T>,
    ) -> Result<(), CollectiveError> {
        self.begin("broadcast")?;
        self.shape("broadcast", crate::within(OpId("broadcast"), "root", 0, 0, root))
    }

    fn barrier(&mut self, _: &D::Stream) -> Result<(), CollectiveError> {
        self.begin("barrier")
    }

    fn abort(&mut self) {
        self.aborted = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::view::{View, ViewMut};

    #[test]
    fn a_group_of_one_exchanges_with_itself() {
        let (source, mut target) = ([1_u32, 2, 3], [0; 3]);
        let mut solo = Solo::new(&Host);
        solo.all_to_all(&(), View::of(&source), &[3], ViewMut::of(&mut target), &[3]).unwrap();
        assert_eq!(target, source);
        let error = solo.all_gather(&(), View::of(&source), ViewMut::of(&mut target), &[2]).unwrap_err();
        assert_eq!((error.op, error.sequence), ("all_gather", 2));
    }

    #[test]
    fn an_aborted_group_stays_closed() {
        let mut solo = Solo::new(&Host);
        Collective::<Host>::abort(&mut solo);
        assert!(solo.barrier(&()).is_err());
    }
}
