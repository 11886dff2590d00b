//! Near: ranks of one host call each other over Unix sockets, which move bytes with about half the work of TCP.
//!
//! Beside its TCP port a rank listens on an abstract name made of that port's address. Such a name ends with its process and is seen in the
//! same network namespace only, so a caller finds it where the port, too, is its own host's, and nowhere else. Encrypted frames take TCP: the
//! cipher takes many times longer than either.

use super::stream::Stream;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Takes the calls of ranks on this host.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// For the rank whose TCP port is at `address`.
    pub(crate) fn new(address: &SocketAddr) -> io::Result<Self> {
        let socket = socket()?;
        bind(&socket, &name(address)?)?;
        listen(&socket, super::door::QUEUE)?;
        Ok(Self(socket))
    }

    pub(crate) fn accept(&self) -> io::Result<Stream> {
        Ok(Stream::unix(accept_with(&self.0, FLAGS)?))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A connection to the rank whose TCP port is at `address`; an error if that is no rank of this host.
pub(crate) fn call(address: &SocketAddr) -> io::Result<Stream> {
    let socket = socket()?;
    connect(&socket, &name(address)?)?;
    Ok(Stream::unix(socket))
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?)
}

fn name(address: &SocketAddr) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(format!("moe-dist {address}").as_bytes())?)
}
