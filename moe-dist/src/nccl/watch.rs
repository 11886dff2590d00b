//! Watch: a thread that looks after the operations under way, since the host does not wait for them.
//!
//! An operation is under way from its call until its stream has passed the mark behind it. Its time runs from when the stream has come
//! to the mark ahead of it, so that long work before it does not count. The watch ends all operations when the time is up, when NCCL
//! tells an error, when another rank has closed the world, and when a member has left while an operation needs it: it closes the world,
//! tells the streams, so that whoever waits for them gets the error and not worthless values, and aborts the communicator, which
//! ends the kernels.

use crate::frame::Operation;
use crate::transport::Stop;
use moe_core::{CollectiveError, CollectiveFault};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often operations under way are looked at.
const PERIOD: Duration = Duration::from_millis(5);
/// How often, while a call waits for one to end.
const SHORT: Duration = Duration::from_micros(100);
/// How long an operation may take to end after a member has left, which may have had its part before.
const GRACE: Duration = Duration::from_secs(1);
/// Most operations under way. A driver that has too much work before it blocks its callers, this thread too.
const MOST: usize = 32;

/// What a watch looks at, and how it acts.
pub(super) trait Plane: Send + Sync + 'static {
    /// A place in a stream.
    type Mark: Send;
    /// A stream.
    type Stream: Send;

    /// Whether the stream has come to the mark.
    fn passed(&self, mark: &Self::Mark) -> Result<bool, Stop>;
    /// What keeps all operations from ending, if anything does.
    fn trouble(&self) -> Option<Stop>;
    /// That an operation has waited for so long, with the rank that is late, if it can be known.
    fn late(&self, waited: Duration) -> Stop;
    /// Closes the world for what stopped the operation, unless it is closed.
    fn close(&self, operation: Operation, sequence: u64, stop: Stop) -> CollectiveError;
    /// Makes whoever waits for the stream get the error.
    fn fail(&self, stream: &Self::Stream, error: &Arc<CollectiveError>);
    /// Ends what is under way, and gives the communicator back.
    fn cut(&self);
    /// Gives the communicator back when nothing is under way.
    fn leave(&self);
}

/// An operation under way.
struct Flight<P: Plane> {
    operation: Operation,
    sequence: u64,
    stream: P::Stream,
    ahead: P::Mark,
    /// None until its calls have put it on the stream
    behind: Option<P::Mark>,
    /// when it was seen that the stream has come to it
    since: Option<Instant>,
}

struct State<P: Plane> {
    timeout: Duration,
    flights: VecDeque<Flight<P>>,
    /// since when a member is seen to have left
    lonely: Option<Instant>,
    /// all was ended
    cut: bool,
    /// no more operations come; until when those under way are waited for
    leaving: Option<Instant>,
    /// the thread is at its end
    left: bool,
}

struct Shared<P: Plane> {
    plane: P,
    state: Mutex<State<P>>,
    changed: Condvar,
}

/// The watch of one communicator. Dropping it waits for the operations under way, each within its time.
pub(super) struct Watch<P: Plane> {
    shared: Arc<Shared<P>>,
    thread: Option<JoinHandle<()>>,
}

impl<P: Plane> Watch<P> {
    pub(super) fn start(plane: P, timeout: Duration) -> io::Result<Self> {
        let flights = VecDeque::new();
        let state = State { timeout, flights, lonely: None, cut: false, leaving: None, left: false };
        let shared = Arc::new(Shared { plane, state: Mutex::new(state), changed: Condvar::new() });
        let watched = shared.clone();
        let thread = thread::Builder::new().name("nccl watch".into()).spawn(move || watched.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn set_timeout(&self, timeout: Duration) {
        self.shared.open().timeout = timeout;
    }

    /// An operation begins behind `ahead`. Waits while too many are under way. False if all was ended.
    #[must_use]
    pub(super) fn begin(
        &self,
        operation: Operation,
        sequence: u64,
        stream: P::Stream,
        ahead: P::Mark,
    ) -> bool {
        let mut state = self.shared.open();
        while state.flights.len() >= MOST && !state.cut {
            // What is wrong is the thread's to see.
            if !matches!(self.shared.landed(&state), Ok(true)) {
                state = self.shared.rest(state, SHORT);
                continue;
            }
            state.flights.pop_front();
        }
        if state.cut {
            return false;
        }
        state.flights.push_back(Flight { operation, sequence, stream, ahead, behind: None, since: None });
        self.shared.changed.notify_all();
        true
    }

    /// The operation that was begun last is on its stream, before `behind`.
    pub(super) fn put(&self, behind: P::Mark) {
        if let Some(flight) = self.shared.open().flights.back_mut() {
            flight.behind = Some(behind);
        }
    }

    /// Ends all operations with the error that has closed the world.
    pub(super) fn end(&self, error: CollectiveError) {
        drop(self.shared.end(self.shared.open(), error));
    }
}

impl<P: Plane> Drop for Watch<P> {
    fn drop(&mut self) {
        let mut state = self.shared.open();
        let now = Instant::now();
        let timeout = state.timeout;
        state.leaving = Some(now.checked_add(timeout).unwrap_or(now + Duration::from_secs(1 << 30)));
        self.shared.changed.notify_all();
        // An abort that does not return must not hold the rank for ever.
        let limit = timeout.saturating_add(10 * GRACE);
        let waited = self.shared.changed.wait_timeout_while(state, limit, |state| !state.left);
        let left = waited.unwrap_or_else(PoisonError::into_inner).0.left;
        if let Some(thread) = self.thread.take().filter(|_| left) {
            let _ = thread.join();
        }
    }
}

impl<P: Plane> Shared<P> {
    fn open(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rest<'a>(&self, state: MutexGuard<'a, State<P>>, period: Duration) -> MutexGuard<'a, State<P>> {
        self.changed.wait_timeout(state, period).unwrap_or_else(PoisonError::into_inner).0
    }

    fn run(&self) {
        let mut state = self.open();
        loop {
            if let Err((operation, sequence, stop)) = self.look(&mut state) {
                let error = self.plane.close(operation, sequence, stop);
                state = self.end(state, error);
            }
            state = match (state.flights.is_empty(), state.leaving) {
                (true, Some(_)) => break,
                (true, None) => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                _ => self.rest(state, PERIOD),
            };
        }
        let cut = state.cut;
        drop(state);
        if !cut {
            self.plane.leave();
        }
        self.open().left = true;
        self.changed.notify_all();
    }

    /// Lets go of what has ended. An error is why the first of the others will not.
    fn look(&self, state: &mut State<P>) -> Result<(), (Operation, u64, Stop)> {
        loop {
            let Some(first) = state.flights.front() else { return Ok(()) };
            let (operation, sequence) = (first.operation, first.sequence);
            let stopped = |stop| (operation, sequence, stop);
            if self.landed(state).map_err(stopped)? {
                state.flights.pop_front();
            } else {
                return self.wrong(state, Instant::now()).map_err(stopped);
            }
        }
    }

    /// Whether the first operation has ended.
    fn landed(&self, state: &State<P>) -> Result<bool, Stop> {
        let behind = state.flights.front().and_then(|first| first.behind.as_ref());
        behind.map_or(Ok(false), |mark| self.plane.passed(mark))
    }

    /// Why the first operation will not end, as an error.
    fn wrong(&self, state: &mut State<P>, now: Instant) -> Result<(), Stop> {
        let Some(first) = state.flights.front_mut() else { return Ok(()) };
        if first.since.is_none() && self.plane.passed(&first.ahead)? {
            first.since = Some(now);
        }
        let since = first.since;
        match self.plane.trouble() {
            Some(Stop::Failed { rank, fault: CollectiveFault::Lost, detail }) => {
                let lonely = *state.lonely.get_or_insert(now);
                let grace = GRACE.min(state.timeout);
                if since.is_some_and(|since| now.duration_since(since.max(lonely)) >= grace) {
                    return Err(Stop::Failed { rank, fault: CollectiveFault::Lost, detail });
                }
            }
            Some(stop) => return Err(stop),
            None => {}
        }
        let late = since.is_some_and(|since| now.duration_since(since) >= state.timeout);
        let never = state.leaving.is_some_and(|until| now >= until);
        if late || never { Err(self.plane.late(state.timeout)) } else { Ok(()) }
    }

    /// Ends what is under way. The streams are told first, so that nobody takes the end for success.
    fn end<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<P>>,
        error: CollectiveError,
    ) -> MutexGuard<'a, State<P>> {
        let error = Arc::new(error);
        state.flights.iter().for_each(|flight| self.plane.fail(&flight.stream, &error));
        state.flights.clear();
        state.cut = true;
        drop(state);
        self.changed.notify_all();
        self.plane.cut();
        self.open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// Marks that a test sets, streams that keep their error, and what was done to them.
    #[derive(Default)]
    struct Desk {
        trouble: Mutex<Option<(CollectiveFault, usize)>>,
        closed: Mutex<Option<String>>,
        cuts: AtomicUsize,
        leaves: AtomicUsize,
    }

    type Flag = Arc<AtomicBool>;
    type Place = Arc<Mutex<Option<String>>>;

    impl Plane for Arc<Desk> {
        type Mark = Flag;
        type Stream = Place;

        fn passed(&self, mark: &Flag) -> Result<bool, Stop> {
            Ok(mark.load(Ordering::SeqCst))
        }
        fn trouble(&self) -> Option<Stop> {
            let (fault, rank) = (*self.trouble.lock().unwrap())?;
            Some(Stop::Failed { rank, fault, detail: String::new() })
        }
        fn late(&self, _: Duration) -> Stop {
            Stop::Failed { rank: 1, fault: CollectiveFault::Deadline, detail: String::new() }
        }
        fn close(&self, operation: Operation, sequence: u64, stop: Stop) -> CollectiveError {
            let Stop::Failed { rank, fault, .. } = stop else { panic!("nobody tells") };
            let error = CollectiveError::new("ep", rank, operation.name(), sequence, fault);
            self.closed.lock().unwrap().get_or_insert(error.to_string());
            error
        }
        fn fail(&self, stream: &Place, error: &Arc<CollectiveError>) {
            assert_eq!(self.cuts.load(Ordering::SeqCst), 0, "the stream must know before the kernels end");
            *stream.lock().unwrap() = Some(error.to_string());
        }
        fn cut(&self) {
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        fn leave(&self) {
            self.leaves.fetch_add(1, Ordering::SeqCst);
        }
    }

    const LIMIT: Duration = Duration::from_millis(100);

    fn watch(timeout: Duration) -> (Arc<Desk>, Watch<Arc<Desk>>) {
        let desk = Arc::new(Desk::default());
        (desk.clone(), Watch::start(desk, timeout).unwrap())
    }

    fn flag(set: bool) -> Flag {
        Arc::new(AtomicBool::new(set))
    }

    fn until(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not come");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_operation_that_takes_too_long_fails_its_stream_and_ends_all() {
        let (desk, watch) = watch(LIMIT);
        let (one, two) = (Place::default(), Place::default());
        let start = Instant::now();
        assert!(watch.begin(Operation::AllToAll, 17, one.clone(), flag(true)));
        watch.put(flag(false));
        assert!(watch.begin(Operation::Broadcast, 18, two.clone(), flag(false)));
        until(|| desk.cuts.load(Ordering::SeqCst) == 1);
        assert!(start.elapsed() >= LIMIT);
        let text = "rank 1 did not answer in time, in all_to_all 17 of group ep";
        for stream in [one, two] {
            assert_eq!(stream.lock().unwrap().as_deref(), Some(text));
        }
        assert_eq!(desk.closed.lock().unwrap().as_deref(), Some(text));
        assert!(!watch.begin(Operation::Barrier, 19, Place::default(), flag(true)));
        drop(watch);
        assert_eq!(desk.leaves.load(Ordering::SeqCst), 0, "there is nothing to give back any more");
    }

    #[test]
    fn time_runs_from_when_the_stream_comes_to_the_operation() {
        let (desk, watch) = watch(LIMIT);
        let (ahead, behind) = (flag(false), flag(false));
        assert!(watch.begin(Operation::AllReduce, 1, Place::default(), ahead.clone()));
        watch.put(behind.clone());
        thread::sleep(3 * LIMIT);
        assert_eq!(*desk.closed.lock().unwrap(), None, "work ahead of it takes as long as it likes");
        ahead.store(true, Ordering::SeqCst);
        thread::sleep(LIMIT / 2);
        behind.store(true, Ordering::SeqCst);
        drop(watch);
        assert_eq!((desk.cuts.load(Ordering::SeqCst), desk.leaves.load(Ordering::SeqCst)), (0, 1));
    }

    #[test]
    fn a_member_that_left_is_an_error_only_if_an_operation_does_not_end() {
        let (desk, watch) = watch(Duration::from_secs(60));
        let behind = flag(false);
        assert!(watch.begin(Operation::AllReduce, 1, Place::default(), flag(true)));
        watch.put(behind.clone());
        *desk.trouble.lock().unwrap() = Some((CollectiveFault::Lost, 2));
        thread::sleep(GRACE / 4);
        behind.store(true, Ordering::SeqCst);
        thread::sleep(GRACE);
        assert_eq!(*desk.closed.lock().unwrap(), None);
        let start = Instant::now();
        assert!(watch.begin(Operation::AllReduce, 2, Place::default(), flag(true)));
        until(|| desk.closed.lock().unwrap().is_some());
        assert!(start.elapsed() < 5 * GRACE);
        let text = "rank 2 is gone, in all_reduce 2 of group ep";
        assert_eq!(desk.closed.lock().unwrap().as_deref(), Some(text));
    }

    #[test]
    fn an_error_of_the_communicator_ends_operations_at_once() {
        let (desk, watch) = watch(Duration::from_secs(60));
        let stream = Place::default();
        assert!(watch.begin(Operation::Broadcast, 3, stream.clone(), flag(false)));
        *desk.trouble.lock().unwrap() = Some((CollectiveFault::Device, 0));
        until(|| desk.cuts.load(Ordering::SeqCst) == 1);
        let text = "rank 0 has a device that failed, in broadcast 3 of group ep";
        assert_eq!(stream.lock().unwrap().as_deref(), Some(text));
    }

    #[test]
    fn a_call_waits_while_too_many_are_under_way() {
        let (desk, watch) = watch(Duration::from_secs(60));
        let first = flag(false);
        for at in 0..MOST {
            assert!(watch.begin(Operation::AllReduce, at as u64, Place::default(), flag(true)));
            watch.put(if at == 0 { first.clone() } else { flag(true) });
        }
        let end = first.clone();
        let other = thread::spawn(move || {
            thread::sleep(LIMIT);
            end.store(true, Ordering::SeqCst);
        });
        let start = Instant::now();
        assert!(watch.begin(Operation::AllReduce, 99, Place::default(), flag(true)));
        assert!(start.elapsed() >= LIMIT / 2, "after {:?}", start.elapsed());
        watch.put(flag(true));
        other.join().unwrap();
        drop(watch);
        assert_eq!((desk.cuts.load(Ordering::SeqCst), desk.leaves.load(Ordering::SeqCst)), (0, 1));
    }

    #[test]
    fn leaving_does_not_wait_for_ever_for_what_never_starts() {
        let (desk, watch) = watch(LIMIT);
        assert!(watch.begin(Operation::AllReduce, 1, Place::default(), flag(false)));
        let start = Instant::now();
        drop(watch);
        assert!(start.elapsed() < GRACE, "after {:?}", start.elapsed());
        assert_eq!(desk.cuts.load(Ordering::SeqCst), 1);
    }
}
