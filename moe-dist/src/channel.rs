//! Ranks that are threads of one process: a transport for tests, and for several devices in one process.

use crate::frame::HEADER;
use crate::link::Link;
use crate::notice::Notice;
use crate::transport::{Pair, Stop, Transport};
use crate::world::World;
use moe_core::CollectiveFault;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The ends of a world of `size` ranks, in rank order, to be moved to their threads.
pub fn world(size: usize) -> Vec<World> {
    let hub: Arc<[Inbox]> = (0..size).map(|_| Inbox::new(size)).collect();
    let end = |rank| World::new(Box::new(Channel { rank, hub: hub.clone() }), rank, size, 0);
    (0..size).map(end).collect()
}

struct Frame {
    header: [u8; HEADER],
    payload: Vec<u8>,
}

/// What has come for one rank.
struct Inbox {
    content: Mutex<Content>,
    arrival: Condvar,
}

struct Content {
    /// by sender
    frames: Vec<VecDeque<Frame>>,
    gone: Vec<bool>,
    notice: Option<Notice>,
}

impl Inbox {
    fn new(size: usize) -> Self {
        let frames = (0..size).map(|_| VecDeque::new()).collect();
        let content = Content { frames, gone: vec![false; size], notice: None };
        Self { content: Mutex::new(content), arrival: Condvar::new() }
    }

    fn open(&self) -> MutexGuard<'_, Content> {
        // A thread that panicked has left only whole frames.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.open());
        self.arrival.notify_all();
    }
}

struct Channel {
    rank: usize,
    hub: Arc<[Inbox]>,
}

impl Channel {
    fn others(&self) -> impl Iterator<Item = &Inbox> {
        self.hub.iter().enumerate().filter(|(rank, _)| *rank != self.rank).map(|(_, inbox)| inbox)
    }

    /// The next frame of one of the pairs that still wait, or why there will be none.
    fn next(&self, pairs: &[Pair<'_>], deadline: Instant) -> Result<(usize, Frame), Stop> {
        let inbox = &self.hub[self.rank];
        let mut content = inbox.open();
        loop {
            let mut missing = None;
            for (at, pair) in pairs.iter().enumerate().filter(|(_, pair)| pair.got.is_none()) {
                if let Some(frame) = content.frames[pair.peer].pop_front() {
                    return Ok((at, frame));
                }
                missing = missing.or(Some(pair.peer));
            }
            if let Some(notice) = &content.notice {
                return Err(Stop::Told(notice.clone()));
            }
            let gone = |pair: &&Pair<'_>| pair.got.is_none() && content.gone[pair.peer];
            if let Some(pair) = pairs.iter().find(gone) {
                let detail = "its end of the world was dropped".into();
                return Err(Stop::Failed { rank: pair.peer, fault: CollectiveFault::Lost, detail });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (rank, detail) = (missing.unwrap_or(self.rank), String::new());
                return Err(Stop::Failed { rank, fault: CollectiveFault::Deadline, detail });
            }
            content = inbox.arrival.wait_timeout(content, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Transport for Channel {
    fn exchange(&mut self, pairs: &mut [Pair<'_>], deadline: Instant) -> Result<(), Stop> {
        for pair in &*pairs {
            let frame = Frame { header: pair.header, payload: pair.payload.concat() };
            self.hub[pair.peer].put(|content| content.frames[self.rank].push_back(frame));
        }
        while pairs.iter().any(|pair| pair.got.is_none()) {
            let (at, frame) = self.next(pairs, deadline)?;
            let pair = &mut pairs[at];
            pair.got = Some(frame.header);
            if frame.header == pair.want {
                // Equal headers name equal lengths.
                let (first, second) = frame.payload.split_at(pair.target[0].len());
                pair.target[0].copy_from_slice(first);
                pair.target[1].copy_from_slice(second);
            }
        }
        Ok(())
    }

    #[cfg(feature = "nccl")]
    fn news(&mut self, ranks: &[usize]) -> Option<Stop> {
        let content = self.hub[self.rank].open();
        if let Some(notice) = &content.notice {
            return Some(Stop::Told(notice.clone()));
        }
        let rank = *ranks.iter().find(|&&rank| content.gone[rank])?;
        let detail = "its end of the world was dropped".into();
        Some(Stop::Failed { rank, fault: CollectiveFault::Lost, detail })
    }

    fn link(&self, _: usize) -> Option<Link> {
        Some(Link::Memory)
    }

    fn announce(&mut self, notice: &Notice) {
        for inbox in self.others() {
            inbox.put(|content| content.notice = content.notice.take().or_else(|| Some(notice.clone())));
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        for inbox in self.others() {
            inbox.put(|content| content.gone[self.rank] = true);
        }
    }
}
