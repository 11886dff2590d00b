//! World: all ranks, and the making of groups of them.

use crate::called::Called;
use crate::fingerprint::digest;
use crate::frame::Operation;
use crate::group::Group;
use crate::launch::Launch;
use crate::link::Link;
use crate::member::Member;
use crate::notice::Notice;
use crate::transport::{Stop, Transport};
use crate::{collectives, socket};
use moe_core::{CollectiveError, ConfigError, Device};
use std::collections::HashMap;
use std::fmt;
#[cfg(feature = "nccl")]
use std::sync::TryLockError;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long an operation may take unless said otherwise.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One rank's end of a world of ranks. Groups keep it open.
pub struct World {
    end: Arc<End>,
    timeout: Duration,
}

/// Why the ranks did not come together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The launch is wrong; nothing was tried.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rank did not come, is gone, or is none. The operation is `connect` of the group `world`.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// What the groups of a rank share.
pub(crate) struct End {
    transport: Mutex<Box<dyn Transport>>,
    /// the failure that closed the world
    closed: OnceLock<Notice>,
    groups: Mutex<Registry>,
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) run: u64,
}

/// Names of the groups, and how often each was made.
#[derive(Default)]
struct Registry {
    names: HashMap<u64, &'static str>,
    made: HashMap<(&'static str, Vec<usize>), usize>,
}

impl World {
    pub(crate) fn new(transport: Box<dyn Transport>, rank: usize, size: usize, run: u64) -> Self {
        let end = End {
            transport: Mutex::new(transport),
            closed: OnceLock::new(),
            groups: Mutex::default(),
            rank,
            size,
            run,
        };
        Self { end: Arc::new(end), timeout: TIMEOUT }
    }

    /// Meets the other processes of `launch`, and returns when all are connected, at the latest after `timeout`. Each rank
    /// holds two connections to every other. No thread is started.
    ///
    /// Beyond the loopback the launch needs a key, and every frame is encrypted.
    ///
    /// # Errors
    /// [`ConnectError`], of which as many ranks as can be reached are told the same.
    pub fn connect(launch: &Launch, timeout: Duration) -> Result<Self, ConnectError> {
        socket::connect(launch, timeout)
    }

    /// The end of connecting: all ranks hear from all, or of what went wrong.
    pub(crate) fn assemble(&self, met: Result<(), Stop>, deadline: Instant) -> Result<(), CollectiveError> {
        let all: Vec<_> = (0..self.size()).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let id = self.end.register("world", &all);
        let member = Member::new(self.end.clone(), "world", id, &all, self.rank(), left);
        if let Err(stop) = met {
            return Err(member.fail(Operation::Connect, stop));
        }
        member.run(Called::new(Operation::Connect, None), collectives::barrier)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.end.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.end.size
    }

    /// How frames go between this rank and another; `None` for this rank itself, and for one that is none of the world.
    /// Waits for an operation that another thread of this rank has under way.
    pub fn link(&self, rank: usize) -> Option<Link> {
        (rank != self.rank() && rank < self.size()).then(|| self.end.transport().link(rank)).flatten()
    }

    /// How long an operation of the groups made from now on may take, from the call to its end on this rank. Ranks that
    /// may be late (loading, saving) are waited for as long. Two minutes unless set.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// A group of `ranks`, in this order, with this rank among them: rank `ranks[r]` of the world is rank r of the group. `name` stands in
    /// errors. Its members make it in the same order relative to others of the same name and ranks; nothing is
    /// sent.
    ///
    /// # Errors
    /// [`ConfigError`] if a rank is not one of the world or named twice, or this rank is missing.
    pub fn group<D: Device>(
        &self,
        device: &D,
        name: &'static str,
        ranks: &[usize],
    ) -> Result<Group<D>, ConfigError> {
        Ok(Group::new(device, self.member(name, ranks)?))
    }

    /// This rank's place in a group of `ranks`.
    pub(crate) fn member(&self, name: &'static str, ranks: &[usize]) -> Result<Member, ConfigError> {
        let wrong = |wanted: String| ConfigError { field: "ranks", got: format!("{ranks:?}"), wanted };
        let size = self.size();
        for (at, &rank) in ranks.iter().enumerate() {
            if rank >= size {
                return Err(wrong(format!("{rank} is not a rank of a world of {size}")));
            }
            if ranks[..at].contains(&rank) {
                return Err(wrong(format!("{rank} stands there twice")));
            }
        }
        let me = ranks.iter().position(|&rank| rank == self.rank());
        let me = me.ok_or_else(|| wrong(format!("this rank, {}, is not among them", self.rank())))?;
        let id = self.end.register(name, ranks);
        Ok(Member::new(self.end.clone(), name, id, ranks, me, self.timeout))
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("rank", &self.rank()).field("size", &self.size()).finish()
    }
}

impl End {
    fn register(&self, name: &'static str, ranks: &[usize]) -> u64 {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let made = groups.made.entry((name, ranks.to_vec())).or_default();
        *made += 1;
        let key: Vec<usize> =
            name.bytes().map(usize::from).chain([*made]).chain(ranks.iter().copied()).collect();
        let id = digest(&key);
        groups.names.insert(id, name);
        id
    }

    /// The name of a group that this rank is in.
    pub(crate) fn name(&self, id: u64) -> Option<&'static str> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).names.get(&id).copied()
    }

    /// The transport, for one operation.
    pub(crate) fn transport(&self) -> MutexGuard<'_, Box<dyn Transport>> {
        // A thread that panicked inside an operation has left frames half sent; what the peers then see is an error of theirs.
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn closed(&self) -> Option<&Notice> {
        self.closed.get()
    }

    /// Why an operation of `ranks` that needs no transport will not end, if a rank has closed the world or is gone. Does not wait:
    /// while an operation uses the transport, that one finds out.
    #[cfg(feature = "nccl")]
    pub(crate) fn news(&self, ranks: &[usize]) -> Option<Stop> {
        if let Some(notice) = self.closed() {
            return Some(Stop::Told(notice.clone()));
        }
        let mut transport = match self.transport.try_lock() {
            Ok(transport) => transport,
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        transport.news(ranks)
    }

    /// Closes the world here and tells all others, unless it is closed already. Returns what closed it.
    pub(crate) fn close(&self, notice: Notice) -> &Notice {
        let mut first = false;
        let notice = self.closed.get_or_init(|| {
            first = true;
            notice
        });
        if first {
            self.transport().announce(notice);
        }
        notice
    }
}
