//! Group: a process group on a device. Checks arguments, brings elements to the host where a device keeps its own, and runs the
//! collective on them.

use crate::called::{Called, Sides};
use crate::collectives;
use crate::frame::Operation;
use crate::member::{Call, Member};
use crate::staging::{self, Before, Staging};
use crate::transport::Stop;
use moe_core::{
    BackendError, Collective, CollectiveError, CollectiveFault, Device, Elem, In, Out, Reduce, Reducible,
};
use std::fmt;
use std::time::Duration;

/// Some ranks of a [`World`](crate::World) in an order of their own; this rank is one of them. A group of one rank sends nothing.
///
/// Works on any device. Elements in host memory are sent from where they are; others are downloaded and uploaded on the stream,
/// which the host waits for.
pub struct Group<D> {
    device: D,
    member: Member,
    scratch: Staging,
    source: Staging,
    target: Staging,
}

impl<D: Device> Group<D> {
    pub(crate) fn new(device: &D, member: Member) -> Self {
        let (scratch, source, target) = Default::default();
        Self { device: device.clone(), member, scratch, source, target }
    }

    /// The name that stands in errors.
    pub fn name(&self) -> &'static str {
        self.member.name()
    }

    /// Ranks of the world, by rank of the group.
    pub fn ranks(&self) -> &[usize] {
        self.member.ranks()
    }

    /// As [`World::set_timeout`](crate::World::set_timeout), for this group.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.member.set_timeout(timeout);
    }
}

impl<D: Device> fmt::Debug for Group<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("name", &self.name()).field("ranks", &self.ranks()).finish()
    }
}

impl<D: Device> Collective<D> for Group<D> {
    fn rank(&self) -> usize {
        self.member.me()
    }

    fn size(&self) -> usize {
        self.member.size()
    }

    fn all_reduce<T: Reducible>(
        &mut self,
        stream: &D::Stream,
        how: Reduce,
        values: Out<'_, D, T>,
    ) -> Result<(), CollectiveError> {
        let operation = Operation::AllReduce;
        let called = self.member.begin(operation, Ok(Called::all_reduce(T::DTYPE, how, values.len())))?;
        if self.size() == 1 {
            return Ok(());
        }
        let Self { device, member, scratch, target: staging, .. } = self;
        let work =
            |values: &mut [T]| member.run(called, |call| collectives::all_reduce(call, how, values, scratch));
        let done = staging::write(device, stream, values, Before::Keep, staging, work);
        done.unwrap_or_else(|error| device_failed(member, operation, error))
    }

    fn all_gather<T: Elem>(
        &mut self,
        stream: &D::Stream,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError> {
        let sides = Sides { source: source.len(), target: target.len() };
        let called = Called::all_gather(self.member.place(), T::DTYPE, sides, counts);
        let called = self.member.begin(Operation::AllGather, called)?;
        if self.size() == 1 {
            return self.copy(called.operation, stream, source, target);
        }
        self.move_over(stream, source, target, called, |call, source, target, _| {
            collectives::all_gather(call, source, target, counts)
        })
    }

    fn reduce_scatter<T: Reducible>(
        &mut self,
        stream: &D::Stream,
        how: Reduce,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError> {
        let sides = Sides { source: source.len(), target: target.len() };
        let called = Called::reduce_scatter(self.member.place(), T::DTYPE, how, sides, counts);
        let called = self.member.begin(Operation::ReduceScatter, called)?;
        if self.size() == 1 {
            return self.copy(called.operation, stream, source, target);
        }
        self.move_over(stream, source, target, called, |call, source, target, scratch| {
            collectives::reduce_scatter(call, how, source, target, counts, scratch)
        })
    }

    fn all_to_all<T: Elem>(
        &mut self,
        stream: &D::Stream,
        source: In<'_, D, T>,
        send: &[usize],
        target: Out<'_, D, T>,
        receive: &[usize],
    ) -> Result<(), CollectiveError> {
        let sides = Sides { source: source.len(), target: target.len() };
        let called = Called::all_to_all(self.member.place(), T::DTYPE, sides, send, receive);
        let called = self.member.begin(Operation::AllToAll, called)?;
        if self.size() == 1 {
            return self.copy(called.operation, stream, source, target);
        }
        self.move_over(stream, source, target, called, |call, source, target, _| {
            collectives::all_to_all(call, source, send, target, receive)
        })
    }

    fn broadcast<T: Elem>(
        &mut self,
        stream: &D::Stream,
        root: usize,
        values: Out<'_, D, T>,
    ) -> Result<(), CollectiveError> {
        let operation = Operation::Broadcast;
        let called = Called::broadcast(self.size(), T::DTYPE, root, values.len());
        let called = self.member.begin(operation, called)?;
        if self.size() == 1 {
            return Ok(());
        }
        let Self { device, member, target: staging, .. } = self;
        let work = |values: &mut [T]| member.run(called, |call| collectives::broadcast(call, root, values));
        let before = if member.me() == root { Before::Keep } else { Before::Overwrite };
        let done = staging::write(device, stream, values, before, staging, work);
        done.unwrap_or_else(|error| device_failed(member, operation, error))
    }

    /// Waits for this rank's stream, then for the other ranks.
    fn barrier(&mut self, stream: &D::Stream) -> Result<(), CollectiveError> {
        let operation = Operation::Barrier;
        let called = self.member.begin(operation, Ok(Called::barrier()))?;
        let Self { device, member, .. } = self;
        device.sync(stream).or_else(|error| device_failed(member, operation, error))?;
        if member.size() == 1 {
            return Ok(());
        }
        member.run(called, collectives::barrier)
    }

    fn abort(&mut self) {
        self.member.give_up(Operation::Abort, CollectiveFault::Aborted, String::new());
    }
}

impl<D: Device> Group<D> {
    /// A collective from one buffer to another.
    fn move_over<T: Elem>(
        &mut self,
        stream: &D::Stream,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
        called: Called<'_>,
        work: impl FnOnce(&mut Call<'_>, &[T], &mut [T], &mut Staging) -> Result<(), Stop>,
    ) -> Result<(), CollectiveError> {
        let Self { device, member, scratch, source: staging, target: target_staging } = self;
        let done = staging::read(device, stream, source, staging).and_then(|source| {
            staging::write(device, stream, target, Before::Overwrite, target_staging, |target| {
                member.run(called, |call| work(call, source, target, scratch))
            })
        });
        done.unwrap_or_else(|error| device_failed(member, called.operation, error))
    }

    /// The exchange of a group of one.
    fn copy<T: Elem>(
        &mut self,
        operation: Operation,
        stream: &D::Stream,
        source: In<'_, D, T>,
        target: Out<'_, D, T>,
    ) -> Result<(), CollectiveError> {
        let copied = self.device.copy(stream, source, target);
        copied.or_else(|error| device_failed(&self.member, operation, error))
    }
}

fn device_failed(
    member: &Member,
    operation: Operation,
    error: impl BackendError,
) -> Result<(), CollectiveError> {
    Err(member.give_up(operation, CollectiveFault::Device, error.to_string()).because(error))
}
