//! Stream: a connection that never blocks, over TCP or, between ranks of one host, over a Unix socket.

use crate::link::Link;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) struct Stream {
    socket: OwnedFd,
    link: Link,
}

impl Stream {
    pub(crate) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { socket: stream.into(), link: Link::Tcp })
    }

    /// Of a Unix socket that does not block.
    pub(crate) fn unix(socket: OwnedFd) -> Self {
        Self { socket, link: Link::Unix }
    }

    pub(crate) fn link(&self) -> Link {
        self.link
    }

    /// Sends without SIGPIPE, whatever the program has made of that signal.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        retry(|| Ok(sendmsg(&self.socket, parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?))
    }

    pub(crate) fn receive(&self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        retry(|| Ok(rustix::io::readv(&self.socket, parts)?))
    }
}

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.receive(&mut [IoSliceMut::new(to)])
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(from)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
