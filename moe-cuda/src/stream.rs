//! Streams: ordered queues of work, which may be captured into graphs.

use crate::buffer::{Block, Pool};
use crate::driver::{Context, check};
use crate::error::CudaError;
use crate::event::Event;
use crate::graph::{Graph, Part};
use crate::order::{Clock, Work, locked};
use cudarc::driver::sys::{self, CUstream, CUstream_flags, CUstreamCaptureMode};
use moe_core::{CollectiveError, DType};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, ThreadId};

/// An ordered queue of work on one GPU. Clones are the same queue.
#[derive(Clone)]
pub struct Stream(pub(crate) Arc<Queue>);

pub(crate) struct Queue {
    pub(crate) context: Arc<Context>,
    pub(crate) raw: CUstream,
    pub(crate) id: u64,
    pub(crate) clock: Clock,
    /// where blocks that wait for each other are counted, over all launches on this stream
    arrivals: u64,
    pool: Arc<Pool>,
    state: Mutex<State>,
    /// why work on it was given up
    failed: OnceLock<Arc<CollectiveError>>,
}

// SAFETY: the driver takes calls for one stream from any thread.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

#[derive(Default)]
struct State {
    /// what the capture in progress uses
    capture: Option<Recording>,
    /// memory that was dropped while a capture was in progress
    dropped: Vec<u64>,
}

/// A capture in progress: who makes it, and what it uses.
struct Recording {
    thread: ThreadId,
    parts: Vec<Part>,
}

impl Stream {
    pub(crate) fn new(pool: &Arc<Pool>) -> Result<Self, CudaError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let context = pool.context();
        context.bind()?;
        let mut raw = null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current, the pointer is valid.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut queue = Queue {
            context: context.clone(),
            raw,
            id,
            clock: Clock::default(),
            arrivals: 0,
            pool: pool.clone(),
            state: Mutex::default(),
            failed: OnceLock::new(),
        };
        let full = CudaError::Memory { len: 2, dtype: DType::U32 };
        queue.arrivals = pool.zeroed(raw, size_of::<u64>())?.ok_or(full)?;
        Ok(Self(Arc::new(queue)))
    }

    /// Where a launch's blocks that wait for each other are counted. Zero at first; every such launch on this stream adds the
    /// number of its blocks, which is the same for all of a device.
    pub(crate) fn arrivals(&self) -> u64 {
        self.0.arrivals
    }

    /// Says that a collective operation on this stream is being given up. All that is put on the stream or waits for it from now
    /// on, and whoever waits already, gets [`CudaError::Collective`]: work behind the operation runs on unspecified values. The
    /// first failure stays. For what runs collectives; it ends the operation after this, so that nobody takes that end for
    /// success.
    pub fn fail(&self, error: Arc<CollectiveError>) {
        let _ = self.0.failed.set(error);
    }

    /// The error of a stream that has failed.
    pub(crate) fn intact(&self) -> Result<(), CudaError> {
        match self.0.failed.get() {
            Some(error) => Err(CudaError::Collective(error.clone())),
            None => Ok(()),
        }
    }

    /// Records the work that `step` puts on this stream, instead of running it; work on other streams runs at once. The graph keeps
    /// the recorded work's buffers alive. Run the step once before: what is only uploaded when it changes cannot be uploaded in a
    /// capture. What the step does on the host, such as counting paths, happens now and not at a replay.
    ///
    /// # Errors
    /// The step's own error; [`CudaError::Capture`] if it allocates, uploads, downloads, waits or uses events, or if a capture is in
    /// progress. Until the capture ends, other threads get the same error for work on this stream.
    pub fn capture<E: From<CudaError>>(&self, step: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        self.begin()?;
        let capture = Capture(self);
        let result = step();
        let graph = capture.end();
        result?;
        Ok(graph?)
    }

    fn begin(&self) -> Result<(), CudaError> {
        self.0.context.bind()?;
        // Nobody is putting work on the stream meanwhile.
        let _turn = self.0.clock.turn();
        let mut state = self.0.state();
        if state.capture.is_some() {
            return Err(CudaError::Capture("a capture inside a capture"));
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.0.raw, mode) })?;
        state.capture = Some(Recording { thread: thread::current().id(), parts: Vec::new() });
        Ok(())
    }

    fn end(&self) -> Result<Graph, CudaError> {
        let turn = self.0.clock.turn();
        let mut state = self.0.state();
        let mut raw = null_mut();
        // SAFETY: the stream lives as long as `self`, the pointer is valid.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.0.raw, &mut raw) });
        let parts = state.capture.take().map(|recording| recording.parts).unwrap_or_default();
        for pointer in state.dropped.drain(..) {
            // SAFETY: the memory's owner is gone. A failure leaves nothing to do.
            let _ = unsafe { sys::cuMemFreeAsync(pointer, self.0.raw) };
        }
        // Dropping `parts` after an error takes the state again.
        drop((state, turn));
        ended?;
        Graph::new(self, raw, parts)
    }

    /// An error if a capture is in progress, for what cannot be part of one.
    pub(crate) fn outside_capture(&self, what: &'static str) -> Result<(), CudaError> {
        match self.0.state().capture {
            Some(_) => Err(CudaError::Capture(what)),
            None => Ok(()),
        }
    }

    /// Begins to put a piece of work on the stream.
    pub(crate) fn work(&self) -> Result<Work<'_>, CudaError> {
        self.intact()?;
        self.0.context.bind()?;
        let work = Work::new(self);
        match &self.0.state().capture {
            Some(recording) if recording.thread != thread::current().id() => {
                Err(CudaError::Capture("work of another thread"))
            }
            _ => Ok(work),
        }
    }

    /// As [`work`](Self::work), for what cannot be part of a graph.
    pub(crate) fn work_outside_capture(&self, what: &'static str) -> Result<Work<'_>, CudaError> {
        let work = self.work()?;
        self.outside_capture(what)?;
        Ok(work)
    }

    /// A graph that is being captured keeps `block`.
    pub(crate) fn keeps(&self, block: &Arc<Block>, written: bool) {
        if let Some(Recording { parts, .. }) = &mut self.0.state().capture {
            match parts.iter_mut().find(|part| Arc::ptr_eq(&part.block, block)) {
                Some(part) => part.written |= written,
                None => parts.push(Part { block: block.clone(), written }),
            }
        }
    }

    /// The next work comes after what is on `other` now.
    pub(crate) fn follow(&self, other: &Self) -> Result<(), CudaError> {
        Event::record(other)?.hold(self)
    }

    pub(crate) fn sync(&self) -> Result<(), CudaError> {
        self.outside_capture("waiting")?;
        self.0.context.bind()?;
        let at = self.0.clock.now();
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0.raw) })?;
        self.intact()?;
        self.0.clock.seen(at);
        Ok(())
    }
}

/// A capture in progress. It ends when its step panics too, and the stream is as it was before.
struct Capture<'a>(&'a Stream);

impl Capture<'_> {
    fn end(self) -> Result<Graph, CudaError> {
        ManuallyDrop::new(self).0.end()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // What was recorded is thrown away. A failure leaves nothing to do.
        let _ = self.0.end();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Frees memory behind the work that is on the stream.
    pub(crate) fn free(&self, pointer: u64) {
        let mut state = self.state();
        if state.capture.is_some() {
            state.dropped.push(pointer);
            return;
        }
        self.pool.free(self.raw, pointer);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // 0 if there was no memory for it.
        if self.arrivals != 0 {
            self.pool.free(self.raw, self.arrivals);
        }
        // SAFETY: nobody else has the stream; the driver finishes its work first. A failure leaves nothing to do.
        let _ = self.context.bind().map(|()| unsafe { sys::cuStreamDestroy_v2(self.raw) });
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.0.id).finish()
    }
}
