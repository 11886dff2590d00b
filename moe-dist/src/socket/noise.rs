//! Handshake: `Noise_NNpsk0` over a greeting that says in clear who calls whom, and that both sides' keys then depend on.
//!
//! ```text
//! caller: greeting, e        (the greeting is the prologue; the message proves the key)
//! called: e, ee
//! caller: record             (proves that the caller is there now: a recorded first message leads nowhere)
//! ```
//!
//! Greeting, little-endian: magic `MoEh`, version u16, channel u8, secured u8, run u64, size u32, caller u32, called u32.

use crate::frame::VERSION;
use crate::key::Key;
use snow::{Builder, HandshakeState, TransportState};

const MAGIC: [u8; 4] = *b"MoEh";
/// Bytes of a greeting.
pub(crate) const GREETING: usize = 28;
/// Bytes of the first message: an ephemeral key and a tag.
pub(crate) const FIRST: usize = GREETING + 48;
/// Bytes of the second message.
pub(crate) const SECOND: usize = 48;
/// Most bytes of a record with its tag.
pub(crate) const RECORD: usize = 65535;
/// Bytes that a record is longer than what is in it.
pub(crate) const TAG: usize = 16;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Line {
    Control,
    Data,
}

/// What all ranks of a world must agree on.
#[derive(Clone, Debug)]
pub(crate) struct Realm {
    pub(crate) run: u64,
    pub(crate) size: usize,
    /// whether frames are encrypted
    pub(crate) secured: bool,
    /// whether frames may take Unix sockets; each rank's own affair
    pub(crate) near: bool,
    pub(crate) key: Key,
}

/// Who calls whom for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) line: Line,
    pub(crate) caller: usize,
    pub(crate) called: usize,
}

impl Realm {
    pub(crate) fn encode(&self, greeting: Greeting) -> [u8; GREETING] {
        let mut to = [0; GREETING];
        to[0..4].copy_from_slice(&MAGIC);
        to[4..6].copy_from_slice(&VERSION.to_le_bytes());
        to[6] = greeting.line as u8;
        to[7] = self.secured.into();
        to[8..16].copy_from_slice(&self.run.to_le_bytes());
        to[16..20].copy_from_slice(&(self.size as u32).to_le_bytes());
        to[20..24].copy_from_slice(&(greeting.caller as u32).to_le_bytes());
        to[24..28].copy_from_slice(&(greeting.called as u32).to_le_bytes());
        to
    }

    /// The greeting, if it is of this realm and for rank `called`.
    pub(crate) fn decode(&self, from: &[u8; GREETING], called: usize) -> Option<Greeting> {
        let line = if from[6] == Line::Control as u8 { Line::Control } else { Line::Data };
        let caller = u32::from_le_bytes(std::array::from_fn(|at| from[20 + at])) as usize;
        let greeting = Greeting { line, caller, called };
        (caller < self.size && caller != called && self.encode(greeting) == *from).then_some(greeting)
    }

    fn builder<'a>(&'a self, prologue: &'a [u8]) -> Result<Builder<'a>, snow::Error> {
        let pattern = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s".parse()?;
        Builder::new(pattern).psk(0, self.key.bytes())?.prologue(prologue)
    }

    /// The caller's first message, and what reads the answer.
    pub(crate) fn call(&self, greeting: Greeting) -> Result<([u8; FIRST], HandshakeState), snow::Error> {
        let prologue = self.encode(greeting);
        let mut state = self.builder(&prologue)?.build_initiator()?;
        let mut first = [0; FIRST];
        first[..GREETING].copy_from_slice(&prologue);
        state.write_message(&[], &mut first[GREETING..])?;
        Ok((first, state))
    }

    /// The answer to a first message with this greeting.
    pub(crate) fn answer(
        &self,
        greeting: Greeting,
        first: &[u8],
    ) -> Result<([u8; SECOND], TransportState), snow::Error> {
        let prologue = self.encode(greeting);
        let mut state = self.builder(&prologue)?.build_responder()?;
        state.read_message(first, &mut [])?;
        let mut second = [0; SECOND];
        state.write_message(&[], &mut second)?;
        Ok((second, state.into_transport_mode()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm(key: u8) -> Realm {
        Realm { run: 7, size: 3, secured: true, near: false, key: Key::new([key; 32]) }
    }

    const GREETS: Greeting = Greeting { line: Line::Data, caller: 1, called: 0 };

    #[test]
    fn both_sides_come_to_the_same_keys() {
        let (first, mut caller) = realm(1).call(GREETS).unwrap();
        let greeting: &[u8; GREETING] = first[..GREETING].try_into().unwrap();
        assert_eq!(realm(1).decode(greeting, 0), Some(GREETS));
        let (second, mut called) = realm(1).answer(GREETS, &first[GREETING..]).unwrap();
        caller.read_message(&second, &mut []).unwrap();
        let mut caller = caller.into_transport_mode().unwrap();
        let (mut record, mut text) = ([0; 20], [0; 20]);
        let len = caller.write_message(b"here", &mut record).unwrap();
        let len = called.read_message(&record[..len], &mut text).unwrap();
        assert_eq!(&text[..len], b"here");
        // Records are counted: the same one a second time is no record.
        assert!(called.read_message(&record, &mut text).is_err());
    }

    #[test]
    fn another_key_or_another_greeting_is_refused() {
        let (first, _) = realm(1).call(GREETS).unwrap();
        assert!(realm(2).answer(GREETS, &first[GREETING..]).is_err());
        let other = Greeting { caller: 2, ..GREETS };
        assert!(realm(1).answer(other, &first[GREETING..]).is_err());
    }

    #[test]
    fn a_greeting_of_another_realm_is_none() {
        let greeting = realm(1).encode(GREETS);
        assert_eq!(realm(1).decode(&greeting, 2), None, "for another rank");
        assert_eq!(Realm { run: 8, ..realm(1) }.decode(&greeting, 0), None);
        assert_eq!(Realm { size: 4, ..realm(1) }.decode(&greeting, 0), None);
        assert_eq!(Realm { secured: false, ..realm(1) }.decode(&greeting, 0), None);
        let outside = realm(1).encode(Greeting { caller: 3, ..GREETS });
        assert_eq!(realm(1).decode(&outside, 0), None, "a rank that is none");
    }
}
