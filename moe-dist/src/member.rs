//! Member: a rank's place in a group, and the rounds of frames that a collective is made of.

use crate::called::Called;
use crate::fault::{self, Point};
use crate::fingerprint;
use crate::frame::{Header, Operation};
use crate::notice::Notice;
use crate::transport::{Pair, Stop, Transport};
use crate::world::End;
use moe_core::{CollectiveError, CollectiveFault, DType, ShapeError};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

/// One rank's place in a group.
#[derive(Clone)]
pub(crate) struct Member {
    end: Arc<End>,
    name: &'static str,
    id: u64,
    /// ranks of the world, by rank of the group
    ranks: Vec<usize>,
    me: usize,
    timeout: Duration,
    sequence: u64,
}

/// An operation under way; no other group of this rank's world runs one meanwhile.
pub(crate) struct Call<'m> {
    member: &'m Member,
    transport: MutexGuard<'m, Box<dyn Transport>>,
    header: Header,
    deadline: Instant,
}

/// What goes to and comes from one member in a round; two parts each, one after the other.
#[derive(Default)]
pub(crate) struct Lane<'a> {
    pub(crate) send: [&'a [u8]; 2],
    pub(crate) receive: [&'a mut [u8]; 2],
}

impl Member {
    pub(crate) fn new(
        end: Arc<End>,
        name: &'static str,
        id: u64,
        ranks: &[usize],
        me: usize,
        timeout: Duration,
    ) -> Self {
        Self { end, name, id, ranks: ranks.to_vec(), me, timeout, sequence: 0 }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn me(&self) -> usize {
        self.me
    }

    pub(crate) fn size(&self) -> usize {
        self.ranks.len()
    }

    pub(crate) fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Counts the next operation, or says why there will be none.
    pub(crate) fn count(&mut self) -> Result<(), CollectiveError> {
        self.sequence += 1;
        self.open()
    }

    /// As [`count`](Self::count), with what this rank has called. Wrong arguments close the world, for the others wait for this rank.
    pub(crate) fn begin<'a>(
        &mut self,
        operation: Operation,
        called: Result<Called<'a>, ShapeError>,
    ) -> Result<Called<'a>, CollectiveError> {
        self.count()?;
        let wrong = |error: ShapeError| {
            self.give_up(operation, CollectiveFault::Argument, error.to_string()).because(error)
        };
        called.map_err(wrong)
    }

    /// This rank's place, and the number of ranks.
    pub(crate) fn place(&self) -> [usize; 2] {
        [self.me, self.ranks.len()]
    }

    /// Whether the world is open, or why not.
    pub(crate) fn open(&self) -> Result<(), CollectiveError> {
        self.end.closed().map_or(Ok(()), |notice| Err(notice.error()))
    }

    /// Closes the world because this rank cannot take part.
    pub(crate) fn give_up(
        &self,
        operation: Operation,
        fault: CollectiveFault,
        detail: String,
    ) -> CollectiveError {
        self.fail(operation, Stop::Failed { rank: self.ranks[self.me], fault, detail })
    }

    /// Runs the operation that was begun.
    pub(crate) fn run(
        &self,
        called: Called<'_>,
        work: impl FnOnce(&mut Call<'_>) -> Result<(), Stop>,
    ) -> Result<(), CollectiveError> {
        let now = Instant::now();
        let header = Header {
            operation: called.operation,
            reduce: called.reduce,
            dtype: called.dtype,
            run: self.end.run,
            group: self.id,
            sequence: self.sequence,
            elements: called.elements as u64,
            counts: called.counts.map_or(0, fingerprint::digest),
            root: called.root as u32,
            round: 0,
            frame_elements: 0,
            bytes: 0,
        };
        fault::begin(called.operation);
        let deadline = now.checked_add(self.timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        let mut call = Call { member: self, transport: self.end.transport(), header, deadline };
        let result = work(&mut call);
        drop(call);
        fault::at(Point::Return);
        result.map_err(|stop| self.fail(called.operation, stop))
    }

    /// The number of the operation that was begun last.
    #[cfg(feature = "nccl")]
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    #[cfg(feature = "nccl")]
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same place at operation number `sequence`.
    #[cfg(feature = "nccl")]
    pub(crate) fn at(&self, sequence: u64) -> Self {
        Self { sequence, ..self.clone() }
    }

    /// What has come from the other members outside an operation. Does not wait.
    #[cfg(feature = "nccl")]
    pub(crate) fn news(&self) -> Option<Stop> {
        self.end.news(&self.ranks)
    }

    /// Closes the world for what stopped an operation.
    pub(crate) fn fail(&self, operation: Operation, stop: Stop) -> CollectiveError {
        let notice = match stop {
            Stop::Told(notice) => notice,
            Stop::Failed { rank, fault, detail } => {
                let rank = self.ranks.iter().position(|&member| member == rank).unwrap_or(self.me);
                let (group, sequence) = (self.name.into(), self.sequence);
                Notice { fault, group, rank, operation, sequence, detail }
            }
        };
        self.end.close(notice).error()
    }
}

impl Call<'_> {
    pub(crate) fn me(&self) -> usize {
        self.member.me
    }

    pub(crate) fn size(&self) -> usize {
        self.member.size()
    }

    /// Exchanges frames with all other members. There is a lane per member; one's own is passed over.
    pub(crate) fn round(&mut self, lanes: Vec<Lane<'_>>) -> Result<(), Stop> {
        let header = self.header;
        let framed = |parts: [usize; 2]| {
            let bytes = (parts[0] + parts[1]) as u64;
            Header { frame_elements: bytes / header.dtype.map_or(1, DType::size) as u64, bytes, ..header }
        };
        let others = lanes.into_iter().enumerate().filter(|(rank, _)| *rank != self.member.me);
        let mut pairs: Vec<_> = others
            .map(|(rank, lane)| Pair {
                peer: self.member.ranks[rank],
                header: framed(lane.send.map(<[u8]>::len)).encode(),
                payload: lane.send,
                want: framed([lane.receive[0].len(), lane.receive[1].len()]).encode(),
                target: lane.receive,
                got: None,
            })
            .collect();
        let end = self.transport.exchange(&mut pairs, self.deadline);
        self.header.round += 1;
        match end {
            Err(Stop::Told(notice)) => Err(Stop::Told(notice)),
            // That a rank is late or gone often follows from its having called something else, which says more.
            end => self.compare(&header, &pairs).and(end),
        }
        .map_err(|stop| self.timed(stop))
    }

    /// Every header that came must be the one that was expected.
    fn compare(&self, header: &Header, pairs: &[Pair<'_>]) -> Result<(), Stop> {
        if pairs.iter().all(|pair| pair.got.is_none_or(|got| got == pair.want)) {
            return Ok(());
        }
        let (mut ranks, mut all) = (Vec::new(), Vec::new());
        for (rank, &world_rank) in self.member.ranks.iter().enumerate() {
            let got = match pairs.iter().find(|pair| pair.peer == world_rank) {
                None => *header,
                Some(Pair { got: None, .. }) => continue,
                Some(Pair { got: Some(got), .. }) => match Header::decode(got) {
                    Some(got) if got.run == header.run => got,
                    _ => return Err(protocol(world_rank)),
                },
            };
            ranks.push(rank);
            all.push(got);
        }
        let called: Vec<_> = all.iter().map(fingerprint::of).collect();
        if let Some((common, odd)) = fingerprint::odd_one(&called) {
            return Err(Stop::Told(self.mismatch(&ranks, &called, common, odd)));
        }
        let differs = |pair: &&Pair<'_>| pair.got.is_some_and(|got| got != pair.want);
        let pair = pairs.iter().find(differs).expect("one of the headers differs");
        let elements = |bytes: &[u8; _]| Header::decode(bytes).map_or(0, |header| header.frame_elements);
        let (sends, wants) = (pair.got.map_or(0, |got| elements(&got)), elements(&pair.want));
        let detail =
            format!("it sends {sends} elements to rank {}, which expects {wants} from it", self.member.me);
        Err(Stop::Failed { rank: pair.peer, fault: CollectiveFault::Mismatch, detail })
    }

    /// The error of all ranks alike: in the operation that most called, rank `odd` did not.
    fn mismatch(&self, ranks: &[usize], called: &[Header], common: usize, odd: usize) -> Notice {
        let name = |called: &Header| self.member.end.name(called.group).unwrap_or("(not this rank's)");
        let mixed = called.iter().any(|one| one.group != called[0].group);
        let words =
            |(rank, one)| format!("rank {rank}: {}", fingerprint::words(one, mixed.then(|| name(one))));
        let list: Vec<_> = ranks.iter().zip(called).map(words).collect();
        let Header { operation, sequence, .. } = called[common];
        Notice {
            fault: CollectiveFault::Mismatch,
            group: name(&called[common]).into(),
            rank: ranks[odd],
            operation,
            sequence,
            detail: list.join("; "),
        }
    }

    /// A late rank's detail is how long it was waited for.
    fn timed(&self, stop: Stop) -> Stop {
        match stop {
            Stop::Failed { rank, fault: CollectiveFault::Deadline, detail } if detail.is_empty() => {
                let detail = format!("nothing came from it within {:?}", self.member.timeout);
                Stop::Failed { rank, fault: CollectiveFault::Deadline, detail }
            }
            stop => stop,
        }
    }
}

fn protocol(rank: usize) -> Stop {
    let detail = "the header is not one of this version and run".into();
    Stop::Failed { rank, fault: CollectiveFault::Protocol, detail }
}
