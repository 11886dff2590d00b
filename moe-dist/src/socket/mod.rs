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
mod near;
mod noise;
mod stream;
#[cfg(test)]
mod tests;
mod wait;
mod wire;

use crate::fingerprint::digest;
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
    let mut meeting = meeting(launch, timeout)?;
    let met = if launch.size == 1 { Ok(()) } else { meeting.run() };
    let Meeting { lines, realm, deadline, .. } = meeting;
    let world = World::new(Box::new(exchange::Sockets::new(lines)), launch.rank, launch.size, realm.run);
    world.assemble(met, deadline)?;
    Ok(world)
}

/// Every decoder, for the fuzzer.
pub(crate) fn decoders(bytes: &[u8], key: &Key) {
    if let Some(message) = control::Message::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    // Run and size of the realm are the bytes' own, so that greetings of this realm are met.
    let Some((greeting, message)) = bytes.split_first_chunk::<{ noise::GREETING }>() else { return };
    let run = u64::from_le_bytes(std::array::from_fn(|at| greeting[8 + at]));
    let size = u32::from_le_bytes(std::array::from_fn(|at| greeting[16 + at])) as usize;
    let realm = Realm { run, size, secured: greeting[7] == 1, near: false, key: key.clone() };
    if let Some(greeting) = realm.decode(greeting, 0) {
        assert!(greeting.caller < size);
        // Without the key no bytes are a first message.
        assert!(realm.answer(greeting, message).is_err());
    }
}

/// Bytes of every kind that a socket carries, for tests to change.
#[cfg(test)]
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let notice = crate::notice::Notice {
        fault: moe_core::CollectiveFault::Lost,
        group: "ep".into(),
        rank: 3,
        operation: crate::frame::Operation::AllToAll,
        sequence: 17,
        detail: "é".into(),
    };
    let realm = Realm { run: 9, size: 3, secured: false, near: false, key: Key::new([2; 32]) };
    let greeting = noise::Greeting { line: noise::Line::Data, caller: 1, called: 0 };
    let table = vec![SocketAddr::from(([127, 0, 0, 1], 7)), SocketAddr::from(([0_u16; 8], 9))];
    let first = realm.call(greeting).map_or(Vec::new(), |(first, _)| first.into());
    let messages = [control::Message::Notice(notice), control::Message::Table(table), control::Message::Ping];
    messages.iter().map(control::Message::encode).chain([first]).collect()
}

/// What a launch says, checked; nothing is connected yet.
fn meeting(launch: &Launch, timeout: Duration) -> Result<Meeting, ConfigError> {
    let wrong = |field, got: String, wanted: String| ConfigError { field, got, wanted };
    let Launch { rank, size, encrypt, tcp, .. } = *launch;
    if !(1..=MOST).contains(&size) {
        return Err(wrong("size", size.to_string(), format!("must be 1 to {MOST}")));
    }
    if rank >= size {
        return Err(wrong("rank", rank.to_string(), format!("there are {size} ranks")));
    }
    let run = digest(&launch.run.bytes().map(usize::from).collect::<Vec<_>>());
    let addresses: Vec<SocketAddr> = (launch.address.as_str(), launch.port)
        .to_socket_addrs()
        .map_err(|error| wrong("address", launch.address.clone(), format!("it cannot be resolved: {error}")))?
        .collect();
    let secured = encrypt || !addresses.iter().all(|address| address.ip().is_loopback());
    let key = match &launch.key {
        Some(key) => key.clone(),
        None if secured && size > 1 => {
            let wanted = "to encrypt, as beyond the loopback, all ranks need the same: set MOE_KEY to what \
                          `openssl rand -hex 32` prints";
            return Err(wrong("key", "none".into(), wanted.into()));
        }
        None => Key::new([0; 32]),
    };
    // Rank 0 gives up a little earlier, so that the others hear who is missing before they give up on rank 0.
    let patience = if rank == 0 { timeout - timeout / 10 } else { timeout };
    let now = Instant::now();
    let deadline = now.checked_add(patience).unwrap_or(now + Duration::from_secs(1 << 30));
    // What the cipher takes is many times what TCP does.
    let realm = Realm { run, size, secured, near: !secured && !tcp, key };
    Ok(Meeting { realm, me: rank, addresses, deadline, lines: Lines::new(size) })
}
