//! Door: takes calls from other ranks, and keeps strangers from being in their way.
//!
//! A caller is nobody until its handshake is done. At most 64 such connections are kept; one more, and the oldest that has said
//! nothing is dropped. Each has five seconds.

use super::control::ADDRESS;
use super::near;
use super::noise::{FIRST, GREETING, Greeting, Realm, TAG};
use super::stream::Stream;
use super::wait::{READ, wait};
use snow::TransportState;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Connections whose handshake is not done.
const HALF_OPEN: usize = 64;
/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the caller's record: its address.
const THIRD: usize = ADDRESS + TAG;

/// Calls that may wait: a scan of the port must not fill the queue before a rank's call.
pub(crate) const QUEUE: i32 = 4096;

pub(crate) struct Door {
    /// for ranks of this host; closed ahead of the port that it is named after
    near: Option<near::Listener>,
    listener: TcpListener,
    realm: Realm,
    me: usize,
    callers: Vec<Caller>,
    /// the last caller that was turned away, and why
    pub(crate) turned_away: Option<String>,
}

/// A connection whose handshake is not done.
struct Caller {
    stream: Stream,
    from: String,
    since: Instant,
    received: Vec<u8>,
    greeted: Option<(Greeting, TransportState)>,
}

/// Another rank, beyond doubt.
pub(crate) struct Guest {
    pub(crate) greeting: Greeting,
    pub(crate) stream: Stream,
    pub(crate) state: TransportState,
    pub(crate) note: [u8; ADDRESS],
}

/// What ended a wait at the door.
pub(crate) enum Visit {
    Guest(Box<Guest>),
    /// a watched socket has something to read
    Watched,
    Deadline,
}

impl Door {
    pub(crate) fn new(
        listener: TcpListener,
        near: Option<near::Listener>,
        realm: Realm,
        me: usize,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        rustix::net::listen(&listener, QUEUE)?;
        Ok(Self { listener, near, realm, me, callers: Vec::new(), turned_away: None })
    }

    /// Waits for the next rank.
    pub(crate) fn next(&mut self, watched: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<Visit> {
        loop {
            let oldest = self.callers.iter().map(|caller| caller.since + PATIENCE).min();
            let until = oldest.map_or(deadline, |oldest| oldest.min(deadline));
            let callers = self.callers.iter().map(|caller| caller.stream.as_fd());
            let doors = [self.listener.as_fd()].into_iter().chain(self.near.as_ref().map(AsFd::as_fd));
            let ours = 1 + usize::from(self.near.is_some());
            let sockets = doors.chain(watched.iter().copied()).chain(callers);
            let ready = wait(&sockets.map(|socket| (socket, READ)).collect::<Vec<_>>(), until)?;
            let (first, callers) = (ours + watched.len(), ready.len());
            for at in (0..callers - first).rev() {
                if ready[first + at]
                    && let Some(guest) = self.advance(at)
                {
                    return Ok(Visit::Guest(guest));
                }
            }
            let now = Instant::now();
            self.callers.retain(|caller| caller.since + PATIENCE > now);
            if ready[..ours].contains(&true)
                && let Some(guest) = self.welcome()
            {
                return Ok(Visit::Guest(guest));
            }
            if ready[ours..first].contains(&true) {
                return Ok(Visit::Watched);
            }
            if now >= deadline {
                return Ok(Visit::Deadline);
            }
        }
    }

    /// Takes the connections that wait.
    fn welcome(&mut self) -> Option<Box<Guest>> {
        for _ in 0..QUEUE {
            let (stream, from) = self.accept()?;
            if self.callers.len() == HALF_OPEN {
                let silent = self.callers.iter().position(|caller| caller.greeted.is_none());
                self.callers.remove(silent.unwrap_or(0));
            }
            let caller = Caller { stream, from, since: Instant::now(), received: Vec::new(), greeted: None };
            self.callers.push(caller);
            if let Some(guest) = self.advance(self.callers.len() - 1) {
                return Some(guest);
            }
        }
        None
    }

    /// The next connection that waits. One that has gone again is passed over; so are all while descriptors run out.
    fn accept(&self) -> Option<(Stream, String)> {
        if let Ok((stream, from)) = self.listener.accept() {
            return Some((Stream::tcp(stream).ok()?, from.to_string()));
        }
        let stream = self.near.as_ref()?.accept().ok()?;
        Some((stream, "a caller of this host".into()))
    }

    /// Goes on with a handshake. The caller leaves the list when it is a guest, or turned away.
    fn advance(&mut self, at: usize) -> Option<Box<Guest>> {
        match self.callers[at].advance(&self.realm, self.me) {
            Ok(None) => None,
            Ok(Some(note)) => {
                let Caller { stream, greeted, .. } = self.callers.remove(at);
                greeted.map(|(greeting, state)| Box::new(Guest { greeting, stream, state, note }))
            }
            Err(error) => {
                let caller = self.callers.remove(at);
                self.turned_away = Some(format!("{} was turned away: {error}", caller.from));
                None
            }
        }
    }
}

impl Caller {
    /// The caller's note once its handshake is done, nothing while it is under way.
    fn advance(&mut self, realm: &Realm, me: usize) -> io::Result<Option<[u8; ADDRESS]>> {
        loop {
            let want = if self.greeted.is_none() { FIRST } else { THIRD };
            let mut bytes = [0; FIRST];
            let room = want - self.received.len();
            match self.stream.read(&mut bytes[..room]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            if self.received.len() < want {
                continue;
            }
            match &mut self.greeted {
                None => self.greeted = Some(self.greet(realm, me)?),
                Some((_, state)) => {
                    let mut note = [0; ADDRESS];
                    state.read_message(&self.received, &mut note).map_err(io::Error::other)?;
                    return Ok(Some(note));
                }
            }
            self.received.clear();
        }
    }

    fn greet(&mut self, realm: &Realm, me: usize) -> io::Result<(Greeting, TransportState)> {
        let (greeting, message) =
            self.received.split_first_chunk::<GREETING>().ok_or(ErrorKind::InvalidData)?;
        let greeting = realm.decode(greeting, me).ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidData, "it is no rank of this world, run and version")
        })?;
        let (second, state) = realm.answer(greeting, message).map_err(|_| {
            let reason = format!("it says it is rank {}, but has another key", greeting.caller);
            io::Error::new(ErrorKind::PermissionDenied, reason)
        })?;
        // Few bytes into an empty buffer: a short write is a broken connection.
        if self.stream.write(&second)? == second.len() {
            Ok((greeting, state))
        } else {
            Err(ErrorKind::WriteZero.into())
        }
    }
}
