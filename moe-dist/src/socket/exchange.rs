//! The transport over sockets: sends and receives on all data connections at once, and listens to the control connections
//! meanwhile. One thread, the caller's.

use super::control::Message;
use super::lines::Lines;
use super::wait::{READ, Want, wait};
use crate::fault::{self, Point};
use crate::frame::HEADER;
use crate::link::Link;
use crate::notice::Notice;
use crate::transport::{Pair, Stop, Transport};
use moe_core::CollectiveFault;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// How long before the deadline late ranks are asked whether they wait.
const ASK: Duration = Duration::from_millis(500);

pub(crate) struct Sockets {
    lines: Lines,
}

/// When an exchange must end, and when to ask the ranks that are late.
struct Limit {
    deadline: Instant,
    ask: Option<Instant>,
}

impl Limit {
    fn new(deadline: Instant) -> Self {
        let left = deadline.saturating_duration_since(Instant::now());
        let ask = Some(deadline.checked_sub(ASK.min(left / 2)).unwrap_or(deadline));
        Self { deadline, ask }
    }
}

/// How far a pair's frames are.
#[derive(Clone, Copy, Default)]
struct Progress {
    sent: usize,
    /// all bytes have left
    out: bool,
    received: usize,
    /// the frame is here, or one that was not expected
    here: bool,
    header: Header,
}

#[derive(Clone, Copy)]
struct Header([u8; HEADER]);

impl Default for Header {
    fn default() -> Self {
        Self([0; HEADER])
    }
}

impl Sockets {
    pub(crate) fn new(lines: Lines) -> Self {
        Self { lines }
    }

    fn send(&mut self, pair: &Pair<'_>, progress: &mut Progress) -> io::Result<()> {
        let wire = self.lines.data(pair.peer).ok_or(ErrorKind::NotConnected)?;
        let parts = [&pair.header[..], pair.payload[0], pair.payload[1]];
        let total: usize = parts.iter().map(|part| part.len()).sum();
        while progress.sent < total {
            let sent = match fault::cut(progress.sent, parts) {
                None => wire.send(&parts, progress.sent)?,
                Some(part) => wire.send(&[part], 0)?,
            };
            progress.sent += sent;
        }
        progress.out = wire.flush()?;
        fault::at(Point::Header);
        Ok(())
    }

    fn receive(&mut self, pair: &mut Pair<'_>, progress: &mut Progress) -> io::Result<()> {
        let wire = self.lines.data(pair.peer).ok_or(ErrorKind::NotConnected)?;
        let [first, second] = &mut pair.target;
        let total = HEADER + first.len() + second.len();
        while !progress.here {
            let parts = [&mut progress.header.0[..], &mut **first, &mut **second];
            match wire.receive(parts, progress.received)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                received => progress.received += received,
            }
            if progress.received >= HEADER {
                pair.got = Some(progress.header.0);
                progress.here = progress.received == total || progress.header.0 != pair.want;
            }
        }
        Ok(())
    }

    /// Why a data connection ended: what a rank has said about it, or that the peer is gone.
    fn ended(&mut self, rank: usize, error: &io::Error, deadline: Instant) -> Stop {
        if let Some(notice) = self.lines.last_words(rank, deadline) {
            return Stop::Told(notice);
        }
        let fault = match error.kind() {
            ErrorKind::InvalidData => CollectiveFault::Protocol,
            _ => CollectiveFault::Lost,
        };
        let detail = match error.kind() {
            ErrorKind::UnexpectedEof => "its connection ended without a word".into(),
            _ => error.to_string(),
        };
        Stop::Failed { rank, fault, detail }
    }

    /// Waits until a pair can go on.
    fn wait(&mut self, pairs: &[Pair<'_>], progress: &[Progress], limit: &mut Limit) -> Result<(), Stop> {
        let mut sockets = Vec::with_capacity(2 * pairs.len());
        for (pair, progress) in pairs.iter().zip(progress) {
            let want = Want { read: !progress.here, write: !progress.out };
            if let Some(socket) = self.lines.data_socket(pair.peer).filter(|_| want.read || want.write) {
                sockets.push((socket, want));
            }
        }
        let data = sockets.len();
        sockets.extend(self.lines.control_sockets().map(|socket| (socket, READ)));
        let until = limit.ask.unwrap_or(limit.deadline);
        let ready = wait(&sockets, until).map_err(|error| {
            let (rank, fault) = (pairs.first().map_or(0, |pair| pair.peer), CollectiveFault::Device);
            Stop::Failed { rank, fault, detail: error.to_string() }
        })?;
        // Frames that are here go before the news.
        if ready[..data].contains(&true) {
            return Ok(());
        }
        if let Some(notice) = ready[data..].contains(&true).then(|| self.lines.told()).flatten() {
            return Err(Stop::Told(notice));
        }
        let now = Instant::now();
        if limit.ask.is_some_and(|ask| now >= ask) {
            limit.ask = None;
            self.lines.ask(late(pairs, progress));
        } else if now >= limit.deadline {
            // One that waits as well is not the cause.
            let silent = late(pairs, progress).find(|&rank| !self.lines.answered(rank));
            let rank = silent.or_else(|| late(pairs, progress).next()).unwrap_or(0);
            return Err(Stop::Failed { rank, fault: CollectiveFault::Deadline, detail: String::new() });
        }
        Ok(())
    }
}

/// The ranks whose frames have not come, or who do not take theirs.
fn late<'a>(pairs: &'a [Pair<'_>], progress: &'a [Progress]) -> impl Iterator<Item = usize> {
    let late = |(_, progress): &(&Pair<'_>, &Progress)| !progress.here || !progress.out;
    pairs.iter().zip(progress).filter(late).map(|(pair, _)| pair.peer)
}

impl Transport for Sockets {
    fn exchange(&mut self, pairs: &mut [Pair<'_>], deadline: Instant) -> Result<(), Stop> {
        let mut progress = vec![Progress::default(); pairs.len()];
        let mut limit = Limit::new(deadline);
        loop {
            for (pair, progress) in pairs.iter_mut().zip(&mut progress) {
                for done in [self.send(pair, progress), self.receive(pair, progress)] {
                    match done {
                        Err(error) if error.kind() != ErrorKind::WouldBlock => {
                            return Err(self.ended(pair.peer, &error, deadline));
                        }
                        _ => {}
                    }
                }
            }
            if progress.iter().all(|progress| progress.here && progress.out) {
                return Ok(());
            }
            let differs = pairs.iter().any(|pair| pair.got.is_some_and(|got| got != pair.want));
            let heard =
                |(pair, progress): (&Pair<'_>, &Progress)| pair.got.is_some() && progress.sent >= HEADER;
            if differs && pairs.iter().zip(&progress).all(heard) {
                return Ok(());
            }
            self.wait(pairs, &progress, &mut limit)?;
        }
    }

    #[cfg(feature = "nccl")]
    fn news(&mut self, ranks: &[usize]) -> Option<Stop> {
        if let Some(notice) = self.lines.told() {
            return Some(Stop::Told(notice));
        }
        let rank = *ranks.iter().find(|&&rank| self.lines.ended(rank))?;
        let detail = "its connection ended without a word".into();
        Some(Stop::Failed { rank, fault: CollectiveFault::Lost, detail })
    }

    fn link(&self, peer: usize) -> Option<Link> {
        self.lines.link(peer)
    }

    fn announce(&mut self, notice: &Notice) {
        self.lines.tell_all(&Message::Notice(notice.clone()));
    }
}
