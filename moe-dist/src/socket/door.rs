//! Door: takes calls from other ranks, and keeps strangers from being in their way.
//!
//! A caller is nobody until its handshake is done. At most 64 such connections are kept; one more, and the oldest that has said
//! nothing is dropped. Each has five seconds.

use super::control::ADDRESS;
use super::noise::{FIRST, GREETING, Greeting, Realm, TAG};
use super::wait::{READ, wait};
use snow::TransportState;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Connections whose handshake is not done.
const HALF_OPEN: usize = 64;
/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the caller's record: its address.
const THIRD: usize = ADDRESS + TAG;

pub(crate) struct Door {
    listener: TcpListener,
    realm: Realm,
    me: usize,
    callers: Vec<Caller>,
    /// the last caller that was turned away, and why
    pub(crate) turned_away: Option<String>,
}

/// A connection whose handshake is not done.
struct Caller {
    stream: TcpStream,
    from: SocketAddr,
    since: Instant,
    received: Vec<u8>,
    greeted: Option<(Greeting, TransportState)>,
}

/// Another rank, beyond doubt.
pub(crate) struct Guest {
    pub(crate) greeting: Greeting,
    pub(crate) stream: TcpStream,
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
    pub(crate) fn new(listener: TcpListener, realm: Realm, me: usize) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        // A scan of the port must not fill the queue before a rank's call.
        rustix::net::listen(&listener, 4096)?;
        Ok(Self { listener, realm, me, callers: Vec::new(), turned_away: None })
    }

    /// Waits for the next rank.
    pub(crate) fn next(&mut self, watched: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<Visit> {
        loop {
            let oldest = self.callers.iter().map(|caller| caller.since + PATIENCE).min();
            let until = oldest.map_or(deadline, |oldest| oldest.min(deadline));
            let callers = self.callers.iter().map(|caller| caller.stream.as_fd());
            let sockets = [self.listener.as_fd()].into_iter().chain(watched.iter().copied()).chain(callers);
            let ready = wait(&sockets.map(|socket| (socket, READ)).collect::<Vec<_>>(), until)?;
            let (first, callers) = (1 + watched.len(), ready.len());
            for at in (0..callers - first).rev() {
                if ready[first + at]
                    && let Some(guest) = self.advance(at)
                {
                    return Ok(Visit::Guest(guest));
                }
            }
            let now = Instant::now();
            self.callers.retain(|caller| caller.since + PATIENCE > now);
            if ready[0]
                && let Some(guest) = self.welcome()?
            {
                return Ok(Visit::Guest(guest));
            }
            if ready[1..first].contains(&true) {
                return Ok(Visit::Watched);
            }
            if now >= deadline {
                return Ok(Visit::Deadline);
            }
        }
    }

    /// Takes all connections that wait.
    fn welcome(&mut self) -> io::Result<Option<Box<Guest>>> {
        loop {
            let (stream, from) = match self.listener.accept() {
                Ok(call) => call,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // The caller has gone again, or descriptors ran out for the moment.
                Err(_) => return Ok(None),
            };
            if stream.set_nonblocking(true).and(stream.set_nodelay(true)).is_err() {
                continue;
            }
            if self.callers.len() == HALF_OPEN {
                let silent = self.callers.iter().position(|caller| caller.greeted.is_none());
                self.callers.remove(silent.unwrap_or(0));
            }
            let caller = Caller { stream, from, since: Instant::now(), received: Vec::new(), greeted: None };
            self.callers.push(caller);
            if let Some(guest) = self.advance(self.callers.len() - 1) {
                return Ok(Some(guest));
            }
        }
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
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
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
