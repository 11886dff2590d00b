//! Waiting for sockets, never past a deadline.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// What to wait for on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

pub(crate) const READ: Want = Want { read: true, write: false };
pub(crate) const WRITE: Want = Want { read: false, write: true };

/// Waits until one of the sockets can do what is wanted of it, or has failed; returns which can. None at the deadline.
pub(crate) fn wait(sockets: &[(BorrowedFd<'_>, Want)], deadline: Instant) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = sockets
        .iter()
        .map(|(socket, want)| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, want.read);
            flags.set(PollFlags::OUT, want.write);
            PollFd::from_borrowed_fd(*socket, flags)
        })
        .collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut polled, Some(&Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })))
        {
            Ok(_) => return Ok(polled.iter().map(|socket| !socket.revents().is_empty()).collect()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
