//! Communicator: NCCL's end of a group. It does not block: a call returns at once, and [`Communicator::ready`] says when its work is on
//! the stream. So an abort from another thread always finds it free.

use super::library::{Code, Config, Handle, Library, UniqueId};
use moe_core::CollectiveFault;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

pub(super) struct Communicator {
    library: &'static Library,
    /// None once it has been given back
    handle: Mutex<Option<Owned>>,
}

struct Owned(Handle);

// SAFETY: NCCL takes calls for a communicator from any thread, one at a time, which the mutex sees to.
unsafe impl Send for Owned {}

/// What NCCL complained of.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) fault: CollectiveFault,
    pub(super) text: String,
}

impl Communicator {
    /// Begins to connect rank `rank` of `size`, with the GPU whose context is current. All ranks call it with the same id.
    pub(super) fn connect(
        library: &'static Library,
        id: UniqueId,
        size: usize,
        rank: usize,
    ) -> Result<Self, Failure> {
        let (mut handle, mut config) = (std::ptr::null_mut(), Config::without_blocking());
        // SAFETY: the pointers are valid, the rank is less than the size.
        let code = unsafe { (library.init_rank)(&mut handle, size as c_int, id, rank as c_int, &mut config) };
        let started = Self { library, handle: Mutex::new((!handle.is_null()).then_some(Owned(handle))) };
        started.judge(code).map(|()| started)
    }

    /// Whether the last call's work is done on the host's side: connected, or put on the stream.
    pub(super) fn ready(&self) -> Result<bool, Failure> {
        // Held to the end: NCCL does not expect another call for the communicator meanwhile, least of all an abort.
        let held = self.lock();
        let Some(Owned(handle)) = *held else { return Err(self.gone()) };
        let mut state = Code::SUCCESS;
        // SAFETY: the communicator lives, the pointer is valid.
        let code = unsafe { (self.library.async_error)(handle, &mut state) };
        self.judge(code)?;
        self.judge(state).map(|()| state != Code::IN_PROGRESS)
    }

    /// Waits until it is [`ready`](Self::ready), as long as it may `go_on`.
    pub(super) fn wait(&self, mut go_on: impl FnMut() -> bool) -> Result<(), Failure> {
        let mut looks = 0_u32;
        while !self.ready()? && go_on() {
            // Most calls take some microseconds, the first ones and connecting much longer.
            looks = looks.saturating_add(1);
            if looks < 1000 { thread::yield_now() } else { thread::sleep(Duration::from_micros(100)) }
        }
        Ok(())
    }

    /// Makes some calls as one; `calls` returns the first answer that is not a success.
    pub(super) fn group(&self, calls: impl FnOnce(&Library, Handle) -> Code) -> Result<(), Failure> {
        let held = self.lock();
        let Some(Owned(handle)) = *held else { return Err(self.gone()) };
        // SAFETY: start and end are on one thread. The end is called whatever the calls answer.
        let codes = unsafe {
            [(self.library.group_start)(), calls(self.library, handle), (self.library.group_end)()]
        };
        codes.into_iter().try_for_each(|code| self.judge(code))
    }

    /// Ends what is under way on the GPU and in other threads' calls, and gives the communicator back.
    pub(super) fn abort(&self) {
        if let Some(Owned(handle)) = self.lock().take() {
            // SAFETY: nobody else has the handle now. A failure leaves nothing to do.
            let _ = unsafe { (self.library.abort)(handle) };
        }
    }

    /// Gives back a communicator whose work is done.
    pub(super) fn destroy(&self) {
        if let Some(Owned(handle)) = self.lock().take() {
            // SAFETY: nobody else has the handle now. A failure leaves nothing to do.
            let _ = unsafe { (self.library.destroy)(handle) };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Owned>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, code: Code) -> Result<(), Failure> {
        let fault = match code {
            Code::SUCCESS | Code::IN_PROGRESS => return Ok(()),
            Code::REMOTE => CollectiveFault::Lost,
            _ => CollectiveFault::Device,
        };
        Err(Failure { fault, text: self.library.text(code) })
    }

    fn gone(&self) -> Failure {
        Failure { fault: CollectiveFault::Aborted, text: "the communicator was given up".into() }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    static INSIDE: AtomicBool = AtomicBool::new(false);
    static MET: AtomicBool = AtomicBool::new(false);

    unsafe extern "C" fn init(handle: *mut Handle, _: c_int, _: UniqueId, _: c_int, _: *mut Config) -> Code {
        // SAFETY: the caller's pointer is valid.
        unsafe { *handle = std::ptr::without_provenance_mut(1) };
        Code::IN_PROGRESS
    }

    /// Never ready, and slow to say so.
    unsafe extern "C" fn look(_: Handle, state: *mut Code) -> Code {
        INSIDE.store(true, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(30));
        INSIDE.store(false, Ordering::SeqCst);
        // SAFETY: the caller's pointer is valid.
        unsafe { *state = Code::IN_PROGRESS };
        Code::SUCCESS
    }

    unsafe extern "C" fn abort(_: Handle) -> Code {
        MET.store(INSIDE.load(Ordering::SeqCst), Ordering::SeqCst);
        Code::SUCCESS
    }

    #[test]
    fn an_abort_comes_between_the_looks_of_a_thread_that_waits_and_ends_its_wait() {
        let nccl = Library { init_rank: init, async_error: look, abort, ..Library::without_functions() };
        let connected = Communicator::connect(Box::leak(Box::new(nccl)), UniqueId([0; 128]), 2, 0);
        let communicator = connected.expect("a communicator");
        thread::scope(|scope| {
            let waits = scope.spawn(|| communicator.wait(|| true));
            while !INSIDE.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            communicator.abort();
            let failure = waits.join().unwrap().expect_err("there is none any more");
            assert_eq!(failure.fault, CollectiveFault::Aborted);
        });
        assert!(!MET.load(Ordering::SeqCst), "the communicator was given back while NCCL looked at it");
    }
}
