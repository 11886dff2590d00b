//! Lines: one rank's connections, a data and a control connection per peer.

use super::control::{Control, Message};
use super::noise::Line;
use super::wait::{READ, wait};
use super::wire::Wire;
use crate::link::Link;
use crate::notice::Notice;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long the cause of a connection's end may take to arrive on a control connection.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// By rank of the world; one's own place stays empty.
pub(crate) struct Lines {
    peers: Vec<Peer>,
}

#[derive(Default)]
struct Peer {
    control: Option<Control>,
    data: Option<Wire>,
}

impl Lines {
    pub(crate) fn new(size: usize) -> Self {
        Self { peers: (0..size).map(|_| Peer::default()).collect() }
    }

    pub(crate) fn has(&self, rank: usize, line: Line) -> bool {
        let peer = &self.peers[rank];
        match line {
            Line::Control => peer.control.is_some(),
            Line::Data => peer.data.is_some(),
        }
    }

    pub(crate) fn put(&mut self, rank: usize, line: Line, wire: Wire) {
        let peer = &mut self.peers[rank];
        match line {
            Line::Control => peer.control = Some(Control::new(wire)),
            Line::Data => peer.data = Some(wire),
        }
    }

    /// The connection that frames of `rank` come on.
    pub(crate) fn data(&mut self, rank: usize) -> Option<&mut Wire> {
        self.peers[rank].data.as_mut()
    }

    pub(crate) fn link(&self, rank: usize) -> Option<Link> {
        self.peers[rank].data.as_ref().map(Wire::link)
    }

    pub(crate) fn data_socket(&self, rank: usize) -> Option<BorrowedFd<'_>> {
        self.peers[rank].data.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn control(&mut self, rank: usize) -> Option<&mut Control> {
        self.peers[rank].control.as_mut()
    }

    /// Control connections on which something may still come.
    pub(crate) fn control_sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let open = |peer: &'_ Peer| peer.control.as_ref().is_some_and(|control| !control.ended);
        self.peers
            .iter()
            .filter(move |peer| open(peer))
            .filter_map(|peer| Some(peer.control.as_ref()?.as_fd()))
    }

    /// Why `rank` has gone, if a rank has said or now says so.
    pub(crate) fn last_words(&mut self, rank: usize, deadline: Instant) -> Option<Notice> {
        let until = deadline.min(Instant::now() + LAST_WORDS);
        loop {
            let notice = self.told();
            if notice.is_some() || self.silent(rank) || Instant::now() >= until {
                return notice;
            }
            let controls: Vec<_> = self.control_sockets().map(|socket| (socket, READ)).collect();
            if wait(&controls, until).is_err() {
                return None;
            }
        }
    }

    /// Whether no word can come from `rank` any more.
    pub(crate) fn silent(&self, rank: usize) -> bool {
        self.peers[rank].control.as_ref().is_none_or(|control| control.ended)
    }

    /// Whether the connection to `rank` has ended; one's own has not.
    #[cfg(feature = "nccl")]
    pub(crate) fn ended(&self, rank: usize) -> bool {
        self.peers[rank].control.as_ref().is_some_and(|control| control.ended)
    }

    /// A rank of whom no word can come any more.
    pub(crate) fn left(&self) -> Option<usize> {
        self.peers.iter().position(|peer| peer.control.as_ref().is_some_and(|control| control.ended))
    }

    /// Asks ranks whether they wait, too.
    pub(crate) fn ask(&mut self, ranks: impl Iterator<Item = usize>) {
        for rank in ranks {
            if let Some(control) = self.peers[rank].control.as_mut() {
                control.answered = false;
                let _: io::Result<()> = control.send(&Message::Ping);
            }
        }
    }

    /// Whether `rank` has answered since it was asked.
    pub(crate) fn answered(&self, rank: usize) -> bool {
        self.peers[rank].control.as_ref().is_some_and(|control| control.answered)
    }

    /// The notice that has come from another rank. Ranks that ask are answered.
    pub(crate) fn told(&mut self) -> Option<Notice> {
        for control in self.peers.iter_mut().filter_map(|peer| peer.control.as_mut()) {
            while !control.ended {
                match control.receive() {
                    Ok(Some(Message::Notice(notice))) => return Some(notice),
                    Ok(Some(Message::Ping)) => drop(control.send(&Message::Pong)),
                    Ok(Some(Message::Pong)) => control.answered = true,
                    // No other message belongs here.
                    Ok(Some(_)) => control.ended = true,
                    Ok(None) => break,
                    Err(_) => {}
                }
            }
        }
        None
    }

    /// Sends a message to all peers. One that cannot take it is passed over.
    pub(crate) fn tell_all(&mut self, message: &Message) {
        for control in self.peers.iter_mut().filter_map(|peer| peer.control.as_mut()) {
            let _: io::Result<()> = control.send(message);
        }
    }
}
