//! Calling another rank.

use super::near;
use super::noise::{Greeting, Line, RECORD, Realm, SECOND};
use super::stream::Stream;
use super::wait::{READ, WRITE, wait};
use crate::fault::{self, Point};
use crate::frame::Operation;
use crate::link::Link;
use moe_core::CollectiveFault;
use snow::TransportState;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a handshake that the other side breaks off is tried again: it may have had too many strangers at its door.
const ATTEMPTS: u32 = 5;
/// How long the handshake with a rank of this host may take over a Unix socket before it is tried over TCP.
const NEAR: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct Unreached {
    pub(crate) fault: CollectiveFault,
    pub(crate) detail: String,
}

/// A connection to the first of `addresses` that answers, until `deadline`. `note` makes what the called rank is told, from
/// an address of this host. Frames in clear go to a rank of this host over a Unix socket.
pub(crate) fn dial(
    realm: &Realm,
    greeting: Greeting,
    addresses: &[SocketAddr],
    patient: bool,
    mut note: impl FnMut(SocketAddr) -> io::Result<Vec<u8>>,
    deadline: Instant,
) -> Result<(Stream, TransportState), Unreached> {
    fault::begin(Operation::Connect);
    let mut broken = 0;
    loop {
        let (mut last, mut answered) = (None, false);
        for address in addresses {
            fault::at(Point::Connect);
            // A handshake that was broken off is tried again over TCP.
            let near = realm.near && greeting.line == Line::Data && broken == 0;
            let (stream, here) = match open(address, near, deadline) {
                Ok(opened) => opened,
                Err(error) => {
                    last = Some(format!("{address}: {error}"));
                    continue;
                }
            };
            answered = true;
            let until = match stream.link() {
                Link::Unix => deadline.min(Instant::now() + NEAR),
                _ => deadline,
            };
            match note(here).and_then(|note| shake(realm, greeting, stream, &note, until)) {
                Ok(connection) => return Ok(connection),
                Err(error) if error.kind() == ErrorKind::TimedOut && until == deadline => {
                    let detail = format!("{address} does not answer the handshake");
                    return Err(Unreached { fault: CollectiveFault::Deadline, detail });
                }
                Err(error) => {
                    broken += 1;
                    let detail = format!(
                        "{address} broke off the handshake ({error}): its key, run, world size or version is another, \
                         or the rank is taken"
                    );
                    if broken == ATTEMPTS {
                        return Err(Unreached { fault: CollectiveFault::Protocol, detail });
                    }
                    last = Some(detail);
                }
            }
        }
        let detail = last.unwrap_or_else(|| "there is no address to call".into());
        if Instant::now() + PAUSE >= deadline {
            return Err(Unreached { fault: CollectiveFault::Deadline, detail });
        }
        if !patient && !answered {
            return Err(Unreached { fault: CollectiveFault::Lost, detail });
        }
        sleep(PAUSE);
    }
}

/// A connection, and an address of this host.
fn open(address: &SocketAddr, near: bool, deadline: Instant) -> io::Result<(Stream, SocketAddr)> {
    if near && let Ok(stream) = near::call(address) {
        return Ok((stream, *address));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(address, left)?;
    let here = stream.local_addr()?;
    Ok((Stream::tcp(stream)?, here))
}

fn shake(
    realm: &Realm,
    greeting: Greeting,
    mut stream: Stream,
    note: &[u8],
    deadline: Instant,
) -> io::Result<(Stream, TransportState)> {
    let (first, mut state) = realm.call(greeting).map_err(io::Error::other)?;
    write_all(&mut stream, &first, deadline)?;
    fault::at(Point::Handshake);
    let mut second = [0; SECOND];
    read_exact(&mut stream, &mut second, deadline)?;
    state.read_message(&second, &mut []).map_err(io::Error::other)?;
    let mut state = state.into_transport_mode().map_err(io::Error::other)?;
    let mut record = vec![0; RECORD];
    let len = state.write_message(note, &mut record).map_err(io::Error::other)?;
    write_all(&mut stream, &record[..len], deadline)?;
    Ok((stream, state))
}

fn ready(stream: &Stream, want: super::wait::Want, deadline: Instant) -> io::Result<()> {
    if wait(&[(stream.as_fd(), want)], deadline)?[0] { Ok(()) } else { Err(ErrorKind::TimedOut.into()) }
}

fn write_all(stream: &mut Stream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready(stream, WRITE, deadline)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_exact(stream: &mut Stream, bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut have = 0;
    while have < bytes.len() {
        match stream.read(&mut bytes[have..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready(stream, READ, deadline)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
