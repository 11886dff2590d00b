//! Order: which work on a buffer is known to come before which.
//!
//! The GPU runs two streams side by side unless an event orders them, or the host has waited for one of them. Work on a buffer
//! that another stream may still be using is refused when it is put on its stream, the same every time: it would be a race.

use crate::driver::check;
use crate::error::CudaError;
use crate::stream::{Queue, Stream};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts a stream's work, and knows what that work comes after.
#[derive(Default)]
pub(crate) struct Clock {
    /// held while a piece of work is put on the stream
    turn: Mutex<()>,
    queued: AtomicU64,
    /// how far the host knows the stream to have come
    done: AtomicU64,
    /// of every other stream, up to where
    past: Mutex<Past>,
}

/// How far other streams have come before something.
pub(crate) type Past = HashMap<u64, u64>;

/// A place in a stream's work.
#[derive(Clone)]
struct Moment {
    queue: Arc<Queue>,
    at: u64,
}

impl Moment {
    /// Whether the host has seen it done.
    fn is_done(&self) -> bool {
        self.at <= self.queue.clock.done.load(Ordering::Acquire)
    }

    fn is_before(&self, stream: &Stream) -> bool {
        let own = Arc::ptr_eq(&self.queue, &stream.0);
        own || self.is_done()
            || locked(&stream.0.clock.past).get(&self.queue.id).is_some_and(|at| self.at <= *at)
    }
}

/// One piece of work that is being put on a stream; no other is, meanwhile.
pub(crate) struct Work<'a> {
    pub(crate) stream: &'a Stream,
    at: u64,
    _turn: MutexGuard<'a, ()>,
}

impl<'a> Work<'a> {
    pub(crate) fn new(stream: &'a Stream) -> Self {
        let clock = &stream.0.clock;
        let turn = locked(&clock.turn);
        let at = clock.queued.fetch_add(1, Ordering::AcqRel) + 1;
        Self { stream, at, _turn: turn }
    }

    /// Waits until this work is done, before any other is put on the stream.
    pub(crate) fn finish(self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as the borrow.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream.0.raw) })?;
        self.stream.intact()?;
        self.stream.0.clock.seen(self.at);
        Ok(())
    }

    fn moment(&self) -> Moment {
        Moment { queue: self.stream.0.clone(), at: self.at }
    }
}

impl Clock {
    /// Keeps others from putting work on the stream.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        locked(&self.turn)
    }

    /// All work so far, which is on the stream when this returns.
    pub(crate) fn now(&self) -> u64 {
        let _turn = locked(&self.turn);
        self.queued.load(Ordering::Acquire)
    }

    /// The host has seen the work up to `at` done.
    pub(crate) fn seen(&self, at: u64) {
        self.done.fetch_max(at, Ordering::AcqRel);
    }

    /// What comes before an event that is recorded after `at` of stream `id`.
    pub(crate) fn past(&self, id: u64, at: u64) -> Past {
        let mut past = locked(&self.past).clone();
        past.insert(id, at);
        past
    }

    /// An event is waited for: what came before it comes before the stream's next work.
    pub(crate) fn follows(&self, event: &Past) {
        let mut past = locked(&self.past);
        for (stream, at) in event {
            let known = past.entry(*stream).or_default();
            *known = (*at).max(*known);
        }
    }
}

/// The last uses of a buffer.
#[derive(Default)]
pub(crate) struct Uses(Mutex<Last>);

#[derive(Default)]
struct Last {
    write: Option<Moment>,
    /// since the write, the last of each stream
    reads: Vec<Moment>,
}

impl Uses {
    /// Notes a read; false if the last write may still be in progress.
    #[must_use]
    pub(crate) fn read(&self, work: &Work<'_>) -> bool {
        let mut last = locked(&self.0);
        if last.write.as_ref().is_some_and(|write| !write.is_before(work.stream)) {
            return false;
        }
        match last.reads.iter_mut().find(|read| Arc::ptr_eq(&read.queue, &work.stream.0)) {
            Some(read) => read.at = work.at,
            None => {
                // Reads that are known to be done order nothing, and would keep their streams.
                last.reads.retain(|read| !read.is_done());
                last.reads.push(work.moment());
            }
        }
        true
    }

    /// Notes a write; false if a use may still be in progress.
    #[must_use]
    pub(crate) fn write(&self, work: &Work<'_>) -> bool {
        let mut last = locked(&self.0);
        if last.write.iter().chain(&last.reads).any(|earlier| !earlier.is_before(work.stream)) {
            return false;
        }
        last.reads.clear();
        last.write = Some(work.moment());
        true
    }

    /// Streams whose use of the buffer may not come before the next work of `stream`.
    pub(crate) fn others(&mut self, stream: &Stream) -> Vec<Stream> {
        let last = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let open = last.write.iter().chain(&last.reads).filter(|use_| !use_.is_before(stream));
        open.map(|use_| Stream(use_.queue.clone())).collect()
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
