//! Line: a group's communicator, with the watch that looks after it.

use super::NcclError;
use super::communicator::{Communicator, Failure};
use super::library::{Library, UniqueId, Unusable};
use super::meet::meet;
use super::watch::{Plane, Watch};
use crate::frame::Operation;
use crate::member::Member;
use crate::transport::Stop;
use moe_core::{CollectiveError, CollectiveFault};
use moe_cuda::{Cuda, Event, Stream};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Line {
    pub(super) communicator: Arc<Communicator>,
    pub(super) watch: Watch<Post>,
}

impl Line {
    /// Connects the members' GPUs.
    pub(super) fn connect(member: &mut Member, cuda: &Cuda) -> Result<Self, NcclError> {
        let first = member.me() == 0;
        let id = |nccl: &Library| if first { nccl.unique_id() } else { Ok(UniqueId([0; 128])) };
        let open = |id| cuda.open_to_peers().map(|()| id).map_err(|error| Unusable::Start(error.to_string()));
        let nccl = Library::get();
        let id = meet(member, nccl.clone().and_then(id).and_then(open))?;
        let failed = |stop| member.fail(Operation::Connect, stop);
        let broken = |error: String| failed(own(member, CollectiveFault::Device, error));
        let nccl = nccl.map_err(|unusable| broken(unusable.to_string()))?;
        cuda.make_current().map_err(|error| broken(error.to_string()))?;
        let communicator = Communicator::connect(nccl, id, member.size(), member.me());
        let communicator = Arc::new(communicator.map_err(|failure| failed(refused(member, failure)))?);
        let (start, mut halt) = (Instant::now(), None);
        let connected = communicator.wait(|| {
            let late = || (start.elapsed() >= member.timeout()).then(|| late(member, member.timeout()));
            halt = member.news().or_else(late);
            halt.is_none()
        });
        connected.map_err(|failure| failed(refused(member, failure)))?;
        halt.map_or(Ok(()), |stop| Err(failed(stop)))?;
        let post = Post { communicator: communicator.clone(), member: member.clone() };
        let watch = Watch::start(post, member.timeout()).map_err(|error| broken(error.to_string()))?;
        Ok(Self { communicator, watch })
    }
}

/// A watch's way to the communicator and to the other ranks.
pub(super) struct Post {
    communicator: Arc<Communicator>,
    member: Member,
}

impl Plane for Post {
    type Mark = Event;
    type Stream = Stream;

    fn passed(&self, mark: &Event) -> Result<bool, Stop> {
        mark.is_done().map_err(|error| own(&self.member, CollectiveFault::Device, error.to_string()))
    }

    fn trouble(&self) -> Option<Stop> {
        let refused = |failure| refused(&self.member, failure);
        self.member.news().or_else(|| self.communicator.ready().err().map(refused))
    }

    fn late(&self, waited: Duration) -> Stop {
        late(&self.member, waited)
    }

    fn close(&self, operation: Operation, sequence: u64, stop: Stop) -> CollectiveError {
        self.member.at(sequence).fail(operation, stop)
    }

    fn fail(&self, stream: &Stream, error: &Arc<CollectiveError>) {
        stream.fail(error.clone());
    }

    fn cut(&self) {
        self.communicator.abort();
    }

    fn leave(&self) {
        match self.member.open() {
            Ok(()) => self.communicator.destroy(),
            Err(_) => self.communicator.abort(),
        }
    }
}

/// That this rank failed.
fn own(member: &Member, fault: CollectiveFault, detail: String) -> Stop {
    Stop::Failed { rank: member.ranks()[member.me()], fault, detail }
}

/// The other rank of two; NCCL does not tell which of more it means.
fn other(member: &Member) -> Option<usize> {
    let two = member.size() == 2;
    two.then(|| member.ranks()[1 - member.me()])
}

/// That NCCL refused.
pub(super) fn refused(member: &Member, Failure { fault, text }: Failure) -> Stop {
    match other(member) {
        Some(rank) if fault == CollectiveFault::Lost => Stop::Failed { rank, fault, detail: text },
        _ => own(member, fault, text),
    }
}

/// That a rank did not come in time.
fn late(member: &Member, waited: Duration) -> Stop {
    let (me, fault) = (member.me(), CollectiveFault::Deadline);
    match other(member) {
        Some(rank) => Stop::Failed { rank, fault, detail: format!("rank {me} waited {waited:?} for it") },
        None => {
            let detail = format!("rank {me} waited {waited:?} for the others; NCCL does not tell for which");
            own(member, fault, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel;

    fn named(size: usize, stop: impl Fn(&Member) -> Stop) -> (usize, CollectiveFault, String) {
        let world = channel::world(size + 1).remove(1);
        let ranks: Vec<_> = (1..=size).collect();
        let Stop::Failed { rank, fault, detail } = stop(&world.member("ep", &ranks).unwrap()) else {
            panic!()
        };
        (rank, fault, detail)
    }

    #[test]
    fn of_two_ranks_the_other_is_late_of_more_it_cannot_be_known() {
        let limit = Duration::from_secs(3);
        let two = named(2, |member| late(member, limit));
        assert_eq!(two, (2, CollectiveFault::Deadline, "rank 0 waited 3s for it".into()));
        let (rank, _, detail) = named(3, |member| late(member, limit));
        assert_eq!(rank, 1, "this rank");
        assert!(detail.ends_with("waited 3s for the others; NCCL does not tell for which"), "{detail}");
    }

    #[test]
    fn a_remote_error_names_the_other_of_two_and_any_other_error_this_rank() {
        let nccl = |fault| move |member: &Member| refused(member, Failure { fault, text: "NCCL: x".into() });
        assert_eq!(named(2, nccl(CollectiveFault::Lost)).0, 2);
        assert_eq!(named(2, nccl(CollectiveFault::Device)).0, 1);
        assert_eq!(named(3, nccl(CollectiveFault::Lost)).0, 1);
    }
}
