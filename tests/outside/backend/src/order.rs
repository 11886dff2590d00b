//! Order: which work on a buffer is known to come before which.
//!
//! A device with queues runs two streams side by side unless an event orders them, or the host has waited for one of them. Work on
//! a buffer that another stream may still be using is an error here, found when it is put in the queue and the same every
//! time; on a GPU it would be a race.

use crate::error::FarError;
use crate::memory::locked;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A place in a stream's queue.
#[derive(Clone)]
pub(crate) struct Moment {
    stream: u64,
    at: u64,
    /// how far the host knows the stream to have come
    done: Arc<AtomicU64>,
}

/// What a stream's next work comes after: of every other stream, up to where.
#[derive(Clone, Default)]
pub(crate) struct Past(HashMap<u64, u64>);

/// Counts a stream's work.
pub(crate) struct Clock {
    stream: u64,
    queued: AtomicU64,
    done: Arc<AtomicU64>,
    past: Mutex<Past>,
}

impl Clock {
    pub(crate) fn new(stream: u64) -> Self {
        Self { stream, queued: AtomicU64::new(0), done: Arc::default(), past: Mutex::default() }
    }

    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    /// One more piece of work is in the queue.
    pub(crate) fn tick(&self) -> u64 {
        self.queued.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The host has seen this work done, and so all work before it.
    pub(crate) fn seen(&self, at: u64) {
        self.done.fetch_max(at, Ordering::Relaxed);
    }

    /// The next piece of work.
    fn next(&self) -> Moment {
        let at = self.queued.load(Ordering::Relaxed) + 1;
        Moment { stream: self.stream, at, done: self.done.clone() }
    }

    /// What comes after an event that is recorded now.
    pub(crate) fn past(&self) -> Past {
        let mut past = locked(&self.past).clone();
        past.0.insert(self.stream, self.queued.load(Ordering::Relaxed));
        past
    }

    /// An event is waited for: its past is now the stream's.
    pub(crate) fn follows(&self, event: &Past) {
        let mut past = locked(&self.past);
        for (stream, at) in &event.0 {
            let known = past.0.entry(*stream).or_default();
            *known = (*at).max(*known);
        }
    }

    fn comes_after(&self, earlier: &Moment) -> bool {
        let known = || locked(&self.past).0.get(&earlier.stream).copied().unwrap_or(0);
        earlier.stream == self.stream
            || earlier.at <= earlier.done.load(Ordering::Relaxed)
            || earlier.at <= known()
    }
}

/// The last uses of a buffer.
#[derive(Default)]
pub(crate) struct Uses {
    write: Option<Moment>,
    /// since the write, the last of each stream
    reads: Vec<Moment>,
}

impl Uses {
    /// Notes a read, which must come after the last write.
    pub(crate) fn read(&mut self, clock: &Clock) -> Result<(), FarError> {
        after(clock, self.write.iter())?;
        self.reads.retain(|read| read.stream != clock.stream());
        self.reads.push(clock.next());
        Ok(())
    }

    /// Notes a write, which must come after all uses.
    pub(crate) fn write(&mut self, clock: &Clock) -> Result<(), FarError> {
        after(clock, self.write.iter().chain(&self.reads))?;
        self.reads.clear();
        self.write = Some(clock.next());
        Ok(())
    }
}

fn after<'a>(clock: &Clock, uses: impl IntoIterator<Item = &'a Moment>) -> Result<(), FarError> {
    match uses.into_iter().find(|earlier| !clock.comes_after(earlier)) {
        None => Ok(()),
        Some(earlier) => Err(FarError::Stream { user: earlier.stream, stream: clock.stream() }),
    }
}
