//! Meeting: from a [`Launch`](crate::Launch) to connections between all ranks.
//!
//! Rank 0 listens where the launch says. Every other rank calls it on its control line and says where it can be called itself;
//! rank 0 answers with the table of all. Then each rank calls all lower ones and takes the calls of all higher ones.
//! Lower ranks finish calling first, so nobody waits in a circle.

use super::control::{Control, Message, decode_address, encode_address};
use super::dial::dial;
use super::door::{Door, Visit};
use super::lines::Lines;
use super::near;
use super::noise::{Greeting, Line, Realm};
use super::stream::Stream;
use super::wait::{READ, wait};
use super::wire::Wire;
use crate::transport::Stop;
use moe_core::CollectiveFault;
use snow::TransportState;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Instant;

pub(crate) struct Meeting {
    pub(crate) realm: Realm,
    pub(crate) me: usize,
    /// of rank 0, as the launch names it
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) deadline: Instant,
    pub(crate) lines: Lines,
}

impl Meeting {
    /// Makes all connections. Those made before a failure stay, to tell the others.
    pub(crate) fn run(&mut self) -> Result<(), Stop> {
        let (mut door, table) = if self.me == 0 { self.receive_all()? } else { self.call_first()? };
        for (rank, address) in table.iter().enumerate().take(self.me) {
            for line in [Line::Control, Line::Data] {
                if !self.lines.has(rank, line) {
                    let addresses = if rank == 0 { self.addresses.clone() } else { vec![*address] };
                    self.call(rank, line, &addresses, |local| Ok(encode_address(&local).into()))?;
                }
            }
        }
        self.take_calls(&mut door, &[Line::Control, Line::Data])?;
        Ok(())
    }

    /// Rank 0: hears from all, and sends the table.
    fn receive_all(&mut self) -> Result<(Door, Vec<SocketAddr>), Stop> {
        let first = *self.addresses.first().ok_or_else(|| self.own("MASTER_ADDR has no address".into()))?;
        let ip = match first.ip() {
            ip if ip.is_loopback() => ip,
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let place = SocketAddr::new(ip, first.port());
        let listener = TcpListener::bind(place)
            .map_err(|error| self.own(format!("rank 0 cannot listen on {place}: {error}")))?;
        let mut door = self.door(listener, &first)?;
        let notes = self.take_calls(&mut door, &[Line::Control])?;
        let mut table = vec![place; self.realm.size];
        for (rank, address) in notes {
            table[rank] = address;
        }
        self.lines.tell_all(&Message::Table(table.clone()));
        Ok((door, table))
    }

    /// All others: call rank 0, and wait for the table.
    fn call_first(&mut self) -> Result<(Door, Vec<SocketAddr>), Stop> {
        let mut listener = None;
        let addresses = self.addresses.clone();
        self.call(0, Line::Control, &addresses, |local| {
            let bound = TcpListener::bind((local.ip(), 0))?;
            let address = bound.local_addr()?;
            listener = Some((bound, address));
            Ok(encode_address(&address).into())
        })?;
        let door = match listener {
            Some((listener, address)) => self.door(listener, &address)?,
            None => return Err(self.own("no listener".into())),
        };
        Ok((door, self.table()?))
    }

    fn table(&mut self) -> Result<Vec<SocketAddr>, Stop> {
        let size = self.realm.size;
        let deadline = self.deadline;
        let Some(control) = self.lines.control(0) else { return Err(failed(0, CollectiveFault::Lost, "")) };
        loop {
            match control.receive() {
                Ok(Some(Message::Table(table))) if table.len() == size => return Ok(table),
                Ok(Some(Message::Notice(notice))) => return Err(Stop::Told(notice)),
                Ok(Some(Message::Refused)) => {
                    let detail = format!("rank {} is there already: two processes claim it", self.me);
                    return Err(failed(self.me, CollectiveFault::Mismatch, &detail));
                }
                Ok(Some(_)) => {
                    return Err(failed(
                        0,
                        CollectiveFault::Protocol,
                        "it sent something else than the table",
                    ));
                }
                Ok(None) => {
                    let ready = wait(&[(control.as_fd(), READ)], deadline);
                    if !ready.map_err(|error| failed(self.me, CollectiveFault::Device, &error.to_string()))?
                        [0]
                    {
                        let detail = "it waits for other ranks, or has stopped";
                        return Err(failed(0, CollectiveFault::Deadline, detail));
                    }
                }
                Err(error) => return Err(failed(0, CollectiveFault::Lost, &error.to_string())),
            }
        }
    }

    fn call(
        &mut self,
        rank: usize,
        line: Line,
        addresses: &[SocketAddr],
        note: impl FnMut(SocketAddr) -> io::Result<Vec<u8>>,
    ) -> Result<(), Stop> {
        let greeting = Greeting { line, caller: self.me, called: rank };
        // Rank 0 may not have started yet; the others listen before they are known.
        let patient = rank == 0 && line == Line::Control;
        let (stream, state) = match dial(&self.realm, greeting, addresses, patient, note, self.deadline) {
            Ok(connection) => connection,
            // A rank that is gone may have gone because of another.
            Err(unreached) => {
                let notice = self.lines.last_words(rank, self.deadline);
                return Err(notice.map_or(failed(rank, unreached.fault, &unreached.detail), Stop::Told));
            }
        };
        self.put(greeting.called, line, stream, state);
        Ok(())
    }

    /// Takes calls until every higher rank is connected on all of `lines`; returns where each caller can be called.
    fn take_calls(&mut self, door: &mut Door, lines: &[Line]) -> Result<Vec<(usize, SocketAddr)>, Stop> {
        let mut notes = Vec::new();
        loop {
            let has_all = |rank: &usize| lines.iter().all(|line| self.lines.has(*rank, *line));
            let Some(missing) = (self.me + 1..self.realm.size).find(|rank| !has_all(rank)) else {
                return Ok(notes);
            };
            let watched: Vec<_> = self.lines.control_sockets().collect();
            let visit = door.next(&watched, self.deadline).map_err(|error| self.own(error.to_string()))?;
            match visit {
                Visit::Guest(guest) => {
                    let Greeting { caller, line, .. } = guest.greeting;
                    if self.lines.has(caller, line) || caller < self.me {
                        self.refuse(guest.stream, guest.state);
                        continue;
                    }
                    self.put(caller, line, guest.stream, guest.state);
                    notes.push((caller, decode_address(&guest.note)));
                }
                Visit::Watched => {
                    if let Some(notice) = self.lines.told() {
                        return Err(Stop::Told(notice));
                    }
                    if let Some(rank) = self.lines.left() {
                        return Err(failed(rank, CollectiveFault::Lost, "it left while the ranks met"));
                    }
                }
                Visit::Deadline => {
                    let detail = door.turned_away.take().unwrap_or_else(|| "it has not come".into());
                    return Err(failed(missing, CollectiveFault::Deadline, &detail));
                }
            }
        }
    }

    fn refuse(&self, stream: Stream, state: TransportState) {
        let wire = Wire::new(stream, self.realm.secured.then_some(state));
        // Whether it still listens is its own affair.
        let _: io::Result<()> = Control::new(wire).send(&Message::Refused);
    }

    fn put(&mut self, rank: usize, line: Line, stream: Stream, state: TransportState) {
        self.lines.put(rank, line, Wire::new(stream, self.realm.secured.then_some(state)));
    }

    fn door(&self, listener: TcpListener, address: &SocketAddr) -> Result<Door, Stop> {
        // Where Unix sockets are denied, or a stranger has the name, ranks call each other over TCP.
        let near = if self.realm.near { near::Listener::new(address).ok() } else { None };
        Door::new(listener, near, self.realm.clone(), self.me).map_err(|error| self.own(error.to_string()))
    }

    /// A failure of this rank's own.
    fn own(&self, detail: String) -> Stop {
        failed(self.me, CollectiveFault::Device, &detail)
    }
}

fn failed(rank: usize, fault: CollectiveFault, detail: &str) -> Stop {
    Stop::Failed { rank, fault, detail: detail.into() }
}
