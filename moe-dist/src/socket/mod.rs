//! Ranks that are processes, on one host or many: a data and a control connection to each peer.
//!
//! Every connection begins with a handshake that proves the key. Where ranks meet on the loopback, frames then go in clear, and a launch
//! without a key has one that is no secret; anywhere else a key must be given and every frame is encrypted.

mod control;
mod dial;
mod door;
mod exchange;
mod lines;
mod meet;
mod noise;
mod wait;
mod wire;

use crate::fault;
use crate::fingerprint::digest;
use crate::frame::Operation;
use crate::key::Key;
use crate::launch::Launch;
use crate::world::{ConnectError, World};
use lines::Lines;
use meet::Meeting;
use moe_core::ConfigError;
use noise::Realm;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Most ranks: their table of addresses is one message.
const MOST: usize = 3600;

/// Meets the other ranks of `launch`. Returns when all are connected to all.
pub(crate) fn connect(launch: &Launch, timeout: Duration) -> Result<World, ConnectError> {
    let deadline =
        Instant::now().checked_add(timeout).unwrap_or_else(|| Instant::now() + Duration::from_secs(1 << 30));
    let wrong = |field, got: String, wanted: String| ConfigError { field, got, wanted };
    let Launch { rank, size, .. } = *launch;
    if !(1..=MOST).contains(&size) {
        return Err(wrong("size", size.to_string(), format!("must be 1 to {MOST}")).into());
    }
    if rank >= size {
        return Err(wrong("rank", rank.to_string(), format!("there are {size} ranks")).into());
    }
    let run = digest(&launch.run.bytes().map(usize::from).collect::<Vec<_>>());
    let addresses: Vec<SocketAddr> = (launch.address.as_str(), launch.port)
        .to_socket_addrs()
        .map_err(|error| wrong("address", launch.address.clone(), format!("it cannot be resolved: {error}")))?
        .collect();
    let away = !addresses.iter().all(|address| address.ip().is_loopback());
    let key = match &launch.key {
        Some(key) => key.clone(),
        None if (away || launch.encrypt) && size > 1 => {
            let wanted = "to encrypt, as beyond the loopback, all ranks need the same: set MOE_KEY to what `openssl rand -hex 32` prints";
            return Err(wrong("key", "none".into(), wanted.into()).into());
        }
        None => Key::new([0; 32]),
    };
    // Rank 0 gives up a little earlier, so that the others hear who is missing before they give up on rank 0.
    let deadline = if rank == 0 { deadline - timeout / 10 } else { deadline };
    let realm = Realm { run, size, secured: away || launch.encrypt, key };
    let mut meeting = Meeting { realm, me: rank, addresses, deadline, lines: Lines::new(size) };
    fault::begin(Operation::Connect);
    let met = if size == 1 { Ok(()) } else { meeting.run() };
    let world = World::new(Box::new(exchange::Sockets::new(meeting.lines)), rank, size, run);
    world.assemble(met, deadline)?;
    Ok(world)
}
