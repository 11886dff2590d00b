//! Near: ranks of one host call each other over Unix sockets, which move bytes in about two thirds of TCP's time.
//!
//! Beside its TCP port a rank listens on an abstract name made of that port's address. Such a name ends with its process and is seen in the
//! same network namespace only, so a caller finds it where the port, too, is its own host's, and nowhere else. Any user of
//! the host could take the name first and pass a handshake on to the port, so either side hangs up unless the other's process is its own user's.

use super::stream::Stream;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::process::geteuid;
use std::io::{self, ErrorKind};
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
        own(accept_with(&self.0, FLAGS)?)
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
    own(socket)
}

/// The connection, if the other side is a process of this user.
fn own(socket: OwnedFd) -> io::Result<Stream> {
    if socket_peercred(&socket)?.uid == geteuid() {
        Ok(Stream::unix(socket))
    } else {
        Err(ErrorKind::PermissionDenied.into())
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?)
}

fn name(address: &SocketAddr) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(format!("moe-dist {address}").as_bytes())?)
}
