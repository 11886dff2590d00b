//! Wire: a connection as a stream of bytes that never blocks, in clear or in encrypted records.
//!
//! A record is a u16 length, little-endian, and that many bytes of Noise ciphertext. Noise counts records, so one that is left out,
//! repeated or changed ends the connection.

use super::noise::{RECORD, TAG};
use super::stream::Stream;
use crate::link::Link;
use snow::TransportState;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

/// Most bytes in clear of a record.
const CLEAR: usize = RECORD - TAG;
/// Ciphertext that is read at once.
const READ: usize = 4 * (RECORD + 2);

pub(crate) struct Wire {
    stream: Stream,
    cipher: Option<Box<Cipher>>,
}

struct Cipher {
    state: TransportState,
    /// a record on its way out, sent up to `sent`
    out: Vec<u8>,
    sent: usize,
    clear: Vec<u8>,
    /// ciphertext that has come and is not yet decrypted: `read[begin..end]`
    read: Vec<u8>,
    begin: usize,
    end: usize,
    /// bytes in clear that nobody has taken yet, from `taken` on
    plain: Vec<u8>,
    taken: usize,
}

impl Wire {
    /// Encrypts with `cipher`, if there is one.
    pub(crate) fn new(stream: Stream, cipher: Option<TransportState>) -> Self {
        let cipher = cipher.map(|state| {
            Box::new(Cipher {
                state,
                out: Vec::with_capacity(RECORD + 2),
                sent: 0,
                clear: Vec::with_capacity(CLEAR),
                read: vec![0; READ],
                begin: 0,
                end: 0,
                plain: Vec::with_capacity(CLEAR),
                taken: 0,
            })
        });
        Self { stream, cipher }
    }

    pub(crate) fn link(&self) -> Link {
        if self.cipher.is_some() { Link::Encrypted } else { self.stream.link() }
    }

    /// Sends some of `parts` from byte `from` on. Returns how many it took, at least one.
    /// [`ErrorKind::WouldBlock`] if none.
    pub(crate) fn send(&mut self, parts: &[&[u8]], from: usize) -> io::Result<usize> {
        let Some(cipher) = &mut self.cipher else {
            return self.stream.send(&behind(parts, from));
        };
        cipher.flush(&self.stream)?;
        cipher.clear.clear();
        for part in behind(parts, from) {
            let room = CLEAR - cipher.clear.len();
            cipher.clear.extend_from_slice(&part[..part.len().min(room)]);
        }
        cipher.out.resize(cipher.clear.len() + TAG + 2, 0);
        let len = cipher.state.write_message(&cipher.clear, &mut cipher.out[2..]).map_err(invalid)?;
        cipher.out[..2].copy_from_slice(&(len as u16).to_le_bytes());
        cipher.sent = 0;
        match cipher.flush(&self.stream) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(cipher.clear.len()),
        }
    }

    /// Whether all that [`send`](Self::send) took has left; sends what has not.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        match self.cipher.as_mut().map(|cipher| cipher.flush(&self.stream)) {
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Some(Err(error)) => Err(error),
            _ => Ok(true),
        }
    }

    /// Receives some of `parts` from byte `from` on. 0 at the end of the stream, [`ErrorKind::WouldBlock`] if nothing is there,
    /// [`ErrorKind::InvalidData`] for a record that is none.
    pub(crate) fn receive(&mut self, parts: [&mut [u8]; 3], from: usize) -> io::Result<usize> {
        let mut skip = from;
        let mut places = parts.map(|part| {
            let start = skip.min(part.len());
            skip -= start;
            IoSliceMut::new(&mut part[start..])
        });
        match &mut self.cipher {
            None => self.stream.receive(&mut places),
            Some(cipher) => cipher.receive(&self.stream, &mut places),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Cipher {
    fn flush(&mut self, stream: &Stream) -> io::Result<()> {
        while self.sent < self.out.len() {
            self.sent += stream.send(&[IoSlice::new(&self.out[self.sent..])])?;
        }
        Ok(())
    }

    fn receive(&mut self, stream: &Stream, places: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut received = 0;
        for place in places {
            let mut filled = 0;
            while filled < place.len() {
                if self.taken == self.plain.len() && !self.decrypt()? {
                    if received > 0 {
                        return Ok(received);
                    }
                    let read = stream.receive(&mut [IoSliceMut::new(&mut self.read[self.end..])])?;
                    if read == 0 {
                        return Ok(0);
                    }
                    self.end += read;
                    continue;
                }
                let count = (place.len() - filled).min(self.plain.len() - self.taken);
                place[filled..filled + count].copy_from_slice(&self.plain[self.taken..self.taken + count]);
                (filled, self.taken, received) = (filled + count, self.taken + count, received + count);
            }
        }
        Ok(received)
    }

    /// Decrypts the next record; false if not all of it is there.
    fn decrypt(&mut self) -> io::Result<bool> {
        let there = &self.read[self.begin..self.end];
        let len = there.get(..2).map(|len| usize::from(u16::from_le_bytes([len[0], len[1]])));
        if let Some(record) = len.and_then(|len| there.get(2..2 + len)) {
            self.plain.resize(CLEAR, 0);
            let len = self.state.read_message(record, &mut self.plain).map_err(invalid)?;
            self.plain.truncate(len);
            self.taken = 0;
            self.begin += 2 + record.len();
            return Ok(true);
        }
        self.read.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        Ok(false)
    }
}

/// What is left of `parts` behind byte `from`.
fn behind<'a>(parts: &[&'a [u8]], mut from: usize) -> Vec<IoSlice<'a>> {
    let rest = |part: &&'a [u8]| {
        let start = from.min(part.len());
        from -= start;
        IoSlice::new(&part[start..])
    };
    parts.iter().map(rest).filter(|part| !part.is_empty()).collect()
}

fn invalid(error: snow::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
