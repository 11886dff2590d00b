//! Control connections: the table of addresses when a world is made, and afterwards the notice that closes it. Shortly before its
//! deadline a rank asks those it waits for whether they wait too, so that it names one that does not.
//!
//! A message is a head of 12 bytes (magic `MoEn`, version u16, kind u16, length u32, little-endian) and its body.

use super::wire::Wire;
use crate::frame::{Operation, VERSION};
use crate::notice::Notice;
use moe_core::CollectiveFault;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

const MAGIC: [u8; 4] = *b"MoEn";
const HEAD: usize = 12;
/// Most bytes of a body; longer ones are refused before anything is allocated.
const BODY: usize = 1 << 16;
/// Most bytes of a notice's group and detail.
const TEXT: usize = 1 << 14;
/// Bytes of an address.
pub(crate) const ADDRESS: usize = 18;

const FAULTS: [CollectiveFault; 7] = [
    CollectiveFault::Argument,
    CollectiveFault::Mismatch,
    CollectiveFault::Deadline,
    CollectiveFault::Lost,
    CollectiveFault::Aborted,
    CollectiveFault::Protocol,
    CollectiveFault::Device,
];

/// What is said on a control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// where each rank can be called, from rank 0
    Table(Vec<SocketAddr>),
    Notice(Notice),
    /// this rank is there already
    Refused,
    /// are you there?
    Ping,
    /// yes, and waiting
    Pong,
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Table(table) => (0_u16, table.iter().flat_map(encode_address).collect()),
            Self::Notice(notice) => (1, encode_notice(notice)),
            Self::Refused => (2, Vec::new()),
            Self::Ping => (3, Vec::new()),
            Self::Pong => (4, Vec::new()),
        };
        let mut to = Vec::with_capacity(HEAD + body.len());
        to.extend(MAGIC);
        to.extend(VERSION.to_le_bytes());
        to.extend(kind.to_le_bytes());
        to.extend((body.len() as u32).to_le_bytes());
        to.extend(body);
        to
    }

    /// Bytes of the body that this head announces.
    fn body_len(head: &[u8; HEAD]) -> Option<usize> {
        let len = u32::from_le_bytes(std::array::from_fn(|at| head[8 + at])) as usize;
        (head[..4] == MAGIC && head[4..6] == VERSION.to_le_bytes() && len <= BODY).then_some(len)
    }

    /// `None` for what [`encode`](Self::encode) does not make.
    pub(crate) fn decode(from: &[u8]) -> Option<Self> {
        let (head, body) = from.split_first_chunk::<HEAD>()?;
        if Self::body_len(head)? != body.len() {
            return None;
        }
        match u16::from_le_bytes([head[6], head[7]]) {
            0 if body.len().is_multiple_of(ADDRESS) => {
                let addresses = body.as_chunks::<ADDRESS>().0.iter();
                Some(Self::Table(addresses.map(decode_address).collect()))
            }
            1 => decode_notice(body).map(Self::Notice),
            2 if body.is_empty() => Some(Self::Refused),
            3 if body.is_empty() => Some(Self::Ping),
            4 if body.is_empty() => Some(Self::Pong),
            _ => None,
        }
    }
}

pub(crate) fn encode_address(address: &SocketAddr) -> [u8; ADDRESS] {
    let mut to = [0; ADDRESS];
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    to[..16].copy_from_slice(&ip.octets());
    to[16..].copy_from_slice(&address.port().to_le_bytes());
    to
}

pub(crate) fn decode_address(from: &[u8; ADDRESS]) -> SocketAddr {
    let ip = Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|at| from[at]));
    SocketAddr::new(IpAddr::V6(ip).to_canonical(), u16::from_le_bytes([from[16], from[17]]))
}

/// Fault u8, operation u8, rank u32, sequence u64, length of the group's name u16, name, detail.
fn encode_notice(notice: &Notice) -> Vec<u8> {
    let fault = FAULTS.iter().position(|&fault| fault == notice.fault).unwrap_or(FAULTS.len());
    let (group, detail) = (prefix(&notice.group), prefix(&notice.detail));
    let mut to = vec![fault as u8, notice.operation.code()];
    to.extend((notice.rank as u32).to_le_bytes());
    to.extend(notice.sequence.to_le_bytes());
    to.extend((group.len() as u16).to_le_bytes());
    to.extend(group.as_bytes());
    to.extend(detail.as_bytes());
    to
}

fn prefix(text: &str) -> &str {
    let end = (0..=text.len().min(TEXT)).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

fn decode_notice(from: &[u8]) -> Option<Notice> {
    let (head, text) = from.split_first_chunk::<16>()?;
    let fault = *FAULTS.get(usize::from(head[0]))?;
    let operation = Operation::of_code(head[1])?;
    let rank = u32::from_le_bytes(std::array::from_fn(|at| head[2 + at])) as usize;
    let sequence = u64::from_le_bytes(std::array::from_fn(|at| head[6 + at]));
    let (group, detail) = text.split_at_checked(usize::from(u16::from_le_bytes([head[14], head[15]])))?;
    if group.len() > TEXT || detail.len() > TEXT {
        return None;
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some(Notice { fault, group: text(group)?, rank, operation, sequence, detail: text(detail)? })
}

/// A control connection.
pub(crate) struct Control {
    wire: Wire,
    received: Vec<u8>,
    /// the peer has closed it
    pub(crate) ended: bool,
    /// the peer has answered since it was asked
    pub(crate) answered: bool,
}

impl Control {
    pub(crate) fn new(wire: Wire) -> Self {
        Self { wire, received: Vec::new(), ended: false, answered: false }
    }

    /// The next message, if all of it is there. An error is the end of the connection.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            let want = match self.received.first_chunk::<HEAD>() {
                None => HEAD,
                Some(head) => match Message::body_len(head) {
                    Some(len) => HEAD + len,
                    None => return Err(self.end(ErrorKind::InvalidData.into())),
                },
            };
            let have = self.received.len();
            if have >= HEAD && have == want {
                let message = Message::decode(&self.received);
                self.received.clear();
                return message.map(Some).ok_or_else(|| self.end(ErrorKind::InvalidData.into()));
            }
            self.received.resize(want, 0);
            let outcome = self.wire.receive([&mut self.received[have..], &mut [], &mut []], 0);
            self.received.truncate(have + outcome.as_ref().copied().unwrap_or(0));
            match outcome {
                Ok(0) => return Err(self.end(ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(self.end(error)),
            }
        }
    }

    fn end(&mut self, error: io::Error) -> io::Error {
        self.ended = true;
        error
    }

    /// Sends a message as far as that goes without waiting, which for one as short is all of it unless the peer is stopped.
    pub(crate) fn send(&mut self, message: &Message) -> io::Result<()> {
        let bytes = message.encode();
        let mut sent = 0;
        while sent < bytes.len() {
            sent += self.wire.send(&[&bytes], sent)?;
        }
        self.wire.flush().map(drop)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Notice {
        Notice {
            fault: CollectiveFault::Deadline,
            group: "ep".into(),
            rank: 3,
            operation: Operation::AllToAll,
            sequence: 17,
            detail: "rank 1 waited".into(),
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let table = ["127.0.0.1:1", "[::1]:65535"].map(|address| address.parse().unwrap());
        for message in [
            Message::Table(table.into()),
            Message::Notice(notice()),
            Message::Refused,
            Message::Ping,
            Message::Pong,
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        let long = Notice { detail: "é".repeat(TEXT), ..notice() };
        let Some(Message::Notice(got)) = Message::decode(&Message::Notice(long).encode()) else { panic!() };
        assert_eq!(got.detail, "é".repeat(TEXT / 2));
    }

    #[test]
    fn a_length_is_refused_before_it_is_believed() {
        let mut bytes = Message::Refused.encode();
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Message::body_len(bytes.first_chunk().unwrap()), None);
    }
}
