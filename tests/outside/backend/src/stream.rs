//! Stream: a queue and the thread that works it off.

use crate::error::FarError;
use crate::memory::locked;
use crate::order::{Clock, Past};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

type Job = Box<dyn FnOnce() -> Result<(), FarError> + Send>;

/// An ordered queue of work. After a fault it works nothing off any more.
pub struct Stream {
    clock: Clock,
    jobs: Sender<Job>,
    fault: Arc<Mutex<Option<FarError>>>,
}

impl Stream {
    pub(crate) fn new() -> Result<Self, FarError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (jobs, queue) = channel::<Job>();
        let fault = Arc::new(Mutex::new(None));
        let seen = fault.clone();
        let work = move || {
            for job in queue {
                let healthy = locked(&seen).is_none();
                if healthy && let Err(error) = job() {
                    *locked(&seen) = Some(error);
                }
            }
        };
        let worker = std::thread::Builder::new().name("far".into()).spawn(work);
        worker.map_err(|error| FarError::Worker(error.to_string()))?;
        Ok(Self { clock: Clock::new(NEXT.fetch_add(1, Ordering::Relaxed)), jobs, fault })
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Puts work at the end of the queue, and does not wait for it; says which piece of work it is.
    pub(crate) fn put(
        &self,
        job: impl FnOnce() -> Result<(), FarError> + Send + 'static,
    ) -> Result<u64, FarError> {
        self.jobs.send(Box::new(job)).map_err(|error| FarError::Worker(error.to_string()))?;
        Ok(self.clock.tick())
    }

    /// Puts work at the end of the queue, and waits for its result; a fault of earlier work surfaces here.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        job: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, FarError> {
        let (answer, result) = channel();
        let at = self.put(move || {
            // A receiver that is gone has given up waiting.
            drop(answer.send(job()));
            Ok(())
        })?;
        let result = result.recv().map_err(|error| {
            locked(&self.fault).clone().unwrap_or_else(|| FarError::Worker(error.to_string()))
        })?;
        self.clock.seen(at);
        Ok(result)
    }

    pub(crate) fn record(&self) -> Result<Event, FarError> {
        let event = Event { reached: Arc::default(), past: self.clock.past() };
        let reached = Reached(event.reached.clone());
        self.put(move || {
            drop(reached);
            Ok(())
        })?;
        Ok(event)
    }

    pub(crate) fn wait(&self, event: &Event) -> Result<(), FarError> {
        let reached = event.reached.clone();
        self.put(move || {
            let (reached, change) = &*reached;
            let waited = change.wait_while(locked(reached), |reached| !*reached);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            Ok(())
        })?;
        self.clock.follows(&event.past);
        Ok(())
    }
}

/// A mark in a queue.
pub struct Event {
    reached: Arc<(Mutex<bool>, Condvar)>,
    past: Past,
}

/// Sets the mark when it is dropped: by the worker in its turn, or with a queue that is no longer worked off.
struct Reached(Arc<(Mutex<bool>, Condvar)>);

impl Drop for Reached {
    fn drop(&mut self) {
        let (reached, change) = &*self.0;
        *locked(reached) = true;
        change.notify_all();
    }
}
