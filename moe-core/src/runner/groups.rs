//! Groups: the ranks that one layer is spread over, by what they share.

use super::alike;
use crate::collective::{Collective, Solo};
use crate::config::{Axis, Place};
use crate::device::Device;
use crate::error::{ConfigError, Error};
use crate::session::Session;
use crate::view::{whole, whole_mut};
use alloc::format;
use alloc::vec;

/// This rank's ends of the groups that a layer's steps exchange rows, sums and counts in. A group of one rank costs nothing.
///
/// Gradients are not reduced here: backward leaves each rank's own part of them, and the optimizer step sums them once, over
/// the groups that hold the same parameter.
#[derive(Clone, Debug)]
pub struct Groups<C> {
    /// the owners of different experts, in the order of [`Place::ep`]: rows travel in it
    pub ep: C,
    /// the ranks that see the same tokens, or with sequence parallelism adjoining parts of them, in the order of
    /// [`Place::tp`]: outputs and input gradients are summed in it
    pub tp: C,
    /// the ranks that have parts of the same sequences: the counts of a sequence are summed in it
    pub cp: C,
    /// the ranks that have other sequences, dp_replicate and dp_shard together: counts of a micro-batch are summed in it
    pub dp: C,
}

impl<D: Device> Groups<Solo<D>> {
    /// One rank alone.
    pub fn solo(device: &D) -> Self {
        let one = || Solo::new(device);
        Self { ep: one(), tp: one(), cp: one(), dp: one() }
    }
}

impl<C> Groups<C> {
    /// The groups must be those of the place.
    pub(super) fn check<D: Device>(&self, place: &Place) -> Result<(), ConfigError>
    where
        C: Collective<D>,
    {
        for (field, axis, group) in [("place.ep", place.ep, &self.ep), ("place.tp", place.tp, &self.tp)] {
            let given = Axis { size: group.size(), rank: group.rank() };
            if given != axis {
                let got = format!("rank {} of {}", axis.rank, axis.size);
                let wanted = format!("the runner's group has rank {} of {}", given.rank, given.size);
                return Err(ConfigError { field, got, wanted });
            }
        }
        Ok(())
    }

    /// Those of several ranks.
    fn spread<D: Device>(&mut self) -> impl Iterator<Item = (&'static str, &mut C)>
    where
        C: Collective<D>,
    {
        let Self { ep, tp, cp, dp } = self;
        let named = [("ep", ep), ("tp", tp), ("cp", cp), ("dp", dp)];
        named.into_iter().filter(|(_, group)| group.size() > 1)
    }

    /// Compares a word of [`alike`] with those of all ranks of every group.
    pub(super) fn agree<D: Device>(&mut self, session: &Session<D>, word: u32) -> Result<(), Error<D::Error>>
    where
        C: Collective<D>,
    {
        for (name, group) in self.spread() {
            let size = group.size();
            let (mut own, mut all, mut words) = (session.alloc(1)?, session.alloc(size)?, vec![0; size]);
            session.upload(&[word], whole_mut::<D, u32>(&mut own))?;
            let (source, target) = (whole::<D, u32>(&own), whole_mut::<D, u32>(&mut all));
            group.all_gather(session.stream(), source, target, &vec![1; size])?;
            session.download(whole::<D, u32>(&all), &mut words)?;
            alike::check(name, words.into_iter())?;
        }
        Ok(())
    }

    /// Tells all other ranks that this one will not go on.
    pub(super) fn abort<D: Device>(&mut self)
    where
        C: Collective<D>,
    {
        self.spread().for_each(|(_, group)| group.abort());
    }
}
