//! NcclGroup: checks arguments, lets the ranks compare what they have called, and puts the operation on the stream.

use super::NcclError;
use super::calls::{self, Trouble};
use super::communicator::Communicator;
use super::line::{Line, refused};
use crate::called::{Called, Sides};
use crate::collectives;
use crate::frame::Operation;
use crate::member::Member;
use crate::transport::Stop;
use crate::world::World;
use moe_core::{
    Collective, CollectiveError, CollectiveFault, Device, Elem, In, OpId, Out, Reduce, Reducible, whole_mut,
};
use moe_cuda::{Cuda, CudaError, Lent, Stream};
use std::fmt;
use std::time::Duration;

/// Some ranks of a [`World`] with a GPU each, in an order of their own; this rank is one of them. A group of one rank needs no NCCL.
///
/// Dropping it waits for its operations, each within the time that it has.
pub struct NcclGroup {
    cuda: Cuda,
    member: Member,
    /// None for a group of one
    line: Option<Line>,
    checked: bool,
}

impl NcclGroup {
    /// A group of `ranks`, in this order, with this rank, on `cuda`, among them: rank `ranks[r]` of the world is rank r of the
    /// group. `name` stands in errors. All members make it, in the same order relative to other groups that they have in common, and
    /// each on a GPU of its own.
    ///
    /// # Errors
    /// [`NcclError`]. If NCCL is missing on a rank, all have an error and the world goes on, so that they can make another
    /// [`group`](World::group).
    pub fn new(world: &World, cuda: &Cuda, name: &'static str, ranks: &[usize]) -> Result<Self, NcclError> {
        let mut member = world.member(name, ranks)?;
        let line = if ranks.len() > 1 { Some(Line::connect(&mut member, cuda)?) } else { None };
        Ok(Self { cuda: cuda.clone(), member, line, checked: true })
    }

    /// The name that stands in errors.
    pub fn name(&self) -> &'static str {
        self.member.name()
    }

    /// Ranks of the world, by rank of the group.
    pub fn ranks(&self) -> &[usize] {
        self.member.ranks()
    }

    /// As [`World::set_timeout`], for this group: for the comparison between the hosts, and again for the operation.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.member.set_timeout(timeout);
        if let Some(line) = &self.line {
            line.watch.set_timeout(timeout);
        }
    }

    /// Whether the ranks compare what they have called before each operation, which they do unless told otherwise. All ranks set it
    /// alike, at the same place among their operations. A barrier compares always.
    pub fn set_checked(&mut self, checked: bool) {
        self.checked = checked;
    }

    /// All ranks have called the same.
    fn compare(&self, called: Called<'_>) -> Result<(), CollectiveError> {
        if self.checked { self.member.run(called, collectives::barrier) } else { Ok(()) }
    }

    /// As [`compare`](Self::compare), and what each rank sends to another is what that one expects.
    fn compare_pairs(
        &self,
        called: Called<'_>,
        send: &[usize],
        receive: &[usize],
    ) -> Result<(), CollectiveError> {
        if !self.checked {
            return Ok(());
        }
        let eights = vec![8; send.len()];
        let sent: Vec<u8> = send.iter().flat_map(|&count| (count as u64).to_le_bytes()).collect();
        let mut got = vec![0_u8; sent.len()];
        self.member.run(called, |call| {
            collectives::all_to_all(call, &sent, &eights, &mut got, &eights)?;
            let sends = got.as_chunks().0.iter().map(|&count| u64::from_le_bytes(count));
            let differs = |&(_, (sends, &wants)): &(usize, (u64, &usize))| sends != wants as u64;
            let Some((rank, (sends, wants))) = sends.zip(receive).enumerate().find(differs) else {
                return Ok(());
            };
            let me = self.member.me();
            let detail = format!("it sends {sends} elements to rank {me}, which expects {wants} from it");
            let rank = self.member.ranks()[rank];
            Err(Stop::Failed { rank, fault: CollectiveFault::Mismatch, detail })
        })
    }

    /// Puts the operation on the stream by `calls`.
    fn put(
        &self,
        line: &Line,
        operation: Operation,
        stream: &Stream,
        calls: impl FnOnce(&Communicator, &Lent<'_>) -> Result<(), Trouble>,
    ) -> Result<(), CollectiveError> {
        let Line { communicator, watch } = line;
        let broken = |error| self.broken(operation, error);
        let ahead = self.cuda.record(stream).map_err(broken)?;
        if !watch.begin(operation, self.member.sequence(), stream.clone(), ahead) {
            // The world was closed before the watch ended.
            return Err(self.member.give_up(operation, CollectiveFault::Aborted, String::new()));
        }
        let made = stream.lend(OpId(operation.name())).map_err(Trouble::Cuda).and_then(|lent| {
            calls(communicator, &lent)?;
            // Nothing else may come onto the stream before all of it is there. The watch ends this too.
            Ok(communicator.wait(|| true)?)
        });
        let error = match made.and_then(|()| Ok(self.cuda.record(stream)?)) {
            Ok(behind) => {
                watch.put(behind);
                return Ok(());
            }
            Err(Trouble::Cuda(error)) => broken(error),
            Err(Trouble::Nccl(failure)) => self.member.fail(operation, refused(&self.member, failure)),
        };
        if let Err(same) = self.member.open() {
            watch.end(same);
        }
        Err(error)
    }

    /// The device failed, so this rank cannot take part.
    fn broken(&self, operation: Operation, error: CudaError) -> CollectiveError {
        self.member.give_up(operation, CollectiveFault::Device, error.to_string()).because(error)
    }

    /// The exchange of a group of one.
    fn copy<T: Elem>(
        &self,
        operation: Operation,
        stream: &Stream,
        source: In<'_, Cuda, T>,
        target: Out<'_, Cuda, T>,
    ) -> Result<(), CollectiveError> {
        self.cuda.copy(stream, source, target).map_err(|error| self.broken(operation, error))
    }
}

impl fmt::Debug for NcclGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NcclGroup").field("name", &self.name()).field("ranks", &self.ranks()).finish()
    }
}

impl Collective<Cuda> for NcclGroup {
    fn rank(&self) -> usize {
        self.member.me()
    }

    fn size(&self) -> usize {
        self.member.size()
    }

    fn all_reduce<T: Reducible>(
        &mut self,
        stream: &Stream,
        how: Reduce,
        values: Out<'_, Cuda, T>,
    ) -> Result<(), CollectiveError> {
        let operation = Operation::AllReduce;
        let called = self.member.begin(operation, Ok(Called::all_reduce(T::DTYPE, how, values.len())))?;
        let Some(line) = &self.line else { return Ok(()) };
        self.compare(called)?;
        if values.is_empty() {
            return Ok(());
        }
        self.put(line, operation, stream, |nccl, lent| calls::all_reduce(nccl, lent, how, values))
    }

    fn all_gather<T: Elem>(
        &mut self,
        stream: &Stream,
        source: In<'_, Cuda, T>,
        target: Out<'_, Cuda, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError> {
        let operation = Operation::AllGather;
        let sides = Sides { source: source.len(), target: target.len() };
        let called = Called::all_gather(self.member.place(), T::DTYPE, sides, counts);
        let called = self.member.begin(operation, called)?;
        let Some(line) = &self.line else { return self.copy(operation, stream, source, target) };
        self.compare(called)?;
        if target.is_empty() {
            return Ok(());
        }
        self.put(line, operation, stream, |nccl, lent| {
            calls::all_gather(nccl, lent, self.member.me(), source, target, counts)
        })
    }

    fn reduce_scatter<T: Reducible>(
        &mut self,
        stream: &Stream,
        how: Reduce,
        source: In<'_, Cuda, T>,
        target: Out<'_, Cuda, T>,
        counts: &[usize],
    ) -> Result<(), CollectiveError> {
        let operation = Operation::ReduceScatter;
        let sides = Sides { source: source.len(), target: target.len() };
        let called = Called::reduce_scatter(self.member.place(), T::DTYPE, how, sides, counts);
        let called = self.member.begin(operation, called)?;
        let Some(line) = &self.line else { return self.copy(operation, stream, source, target) };
        self.compare(called)?;
        if source.is_empty() {
            return Ok(());
        }
        self.put(line, operation, stream, |nccl, lent| {
            calls::reduce_scatter(nccl, lent, how, source, target, counts)
        })
    }

    fn all_to_all<T: Elem>(
        &mut self,
        stream: &Stream,
        source: In<'_, Cuda, T>,
        send: &[usize],
        target: Out<'_, Cuda, T>,
        receive: &[usize],
    ) -> Result<(), CollectiveError> {
        let operation = Operation::AllToAll;
        let sides = Sides { source: source.len(), target: target.len() };
        let called = Called::all_to_all(self.member.place(), T::DTYPE, sides, send, receive);
        let called = self.member.begin(operation, called)?;
        let Some(line) = &self.line else { return self.copy(operation, stream, source, target) };
        self.compare_pairs(called, send, receive)?;
        if source.is_empty() && target.is_empty() {
            return Ok(());
        }
        self.put(line, operation, stream, |nccl, lent| {
            calls::all_to_all(nccl, lent, source, send, target, receive)
        })
    }

    fn broadcast<T: Elem>(
        &mut self,
        stream: &Stream,
        root: usize,
        values: Out<'_, Cuda, T>,
    ) -> Result<(), CollectiveError> {
        let operation = Operation::Broadcast;
        let called = Called::broadcast(self.size(), T::DTYPE, root, values.len());
        let called = self.member.begin(operation, called)?;
        let Some(line) = &self.line else { return Ok(()) };
        self.compare(called)?;
        if values.is_empty() {
            return Ok(());
        }
        self.put(line, operation, stream, |nccl, lent| calls::broadcast(nccl, lent, root, values))
    }

    /// Returns once every rank has called it; what is then put on a rank's stream runs after what all ranks had on theirs.
    fn barrier(&mut self, stream: &Stream) -> Result<(), CollectiveError> {
        let operation = Operation::Barrier;
        let called = self.member.begin(operation, Ok(Called::barrier()))?;
        let Some(line) = &self.line else { return Ok(()) };
        self.member.run(called, collectives::barrier)?;
        let mut token = self.cuda.alloc::<u8>(stream, 1).map_err(|error| self.broken(operation, error))?;
        let token = whole_mut::<Cuda, u8>(&mut token);
        self.put(line, operation, stream, |nccl, lent| calls::all_reduce(nccl, lent, Reduce::Max, token))
    }

    fn abort(&mut self) {
        let error = self.member.give_up(Operation::Abort, CollectiveFault::Aborted, String::new());
        if let Some(line) = &self.line {
            line.watch.end(error);
        }
    }
}
