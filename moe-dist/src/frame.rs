//! Frame: the fixed header ahead of every payload, little-endian.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | magic `MoEc` |
//! | 4..6 | version |
//! | 6 | operation |
//! | 7 | reduction: 0 none, 1 sum, 2 max |
//! | 8..16 | run id |
//! | 16..24 | group |
//! | 24..32 | the group's count of operations |
//! | 32..40 | elements of the operation, where all ranks must agree on them; else 0 |
//! | 40..48 | digest of the counts per rank, where all ranks must agree on them; else 0 |
//! | 48..52 | root |
//! | 52..56 | round of the operation |
//! | 56 | element type: 0 none, then f32, f64, bf16, f16, u32, u8 |
//! | 57..64 | 0 |
//! | 64..72 | elements in this frame |
//! | 72..80 | bytes of payload that follow |
//!
//! A receiver knows every field before the frame comes, and compares. No length that came over a wire is ever used to
//! allocate or to read.

use moe_core::{DType, Reduce};

/// Bytes of a header.
pub(crate) const HEADER: usize = 80;

const MAGIC: [u8; 4] = *b"MoEc";
/// Version of frames, handshake and notices.
pub(crate) const VERSION: u16 = 1;

/// A collective operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
    Broadcast,
    Barrier,
    /// not one that frames carry: the call that closes a group
    Abort,
    /// making a world, or what a device needs to take part in a group
    Connect,
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::AllToAll,
        Self::Broadcast,
        Self::Barrier,
        Self::Abort,
        Self::Connect,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::Abort => "abort",
            Self::Connect => "connect",
        }
    }

    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn of_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

const DTYPES: [DType; 6] = [DType::F32, DType::F64, DType::Bf16, DType::F16, DType::U32, DType::U8];

/// What is said ahead of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) operation: Operation,
    pub(crate) reduce: Option<Reduce>,
    pub(crate) dtype: Option<DType>,
    pub(crate) run: u64,
    pub(crate) group: u64,
    pub(crate) sequence: u64,
    pub(crate) elements: u64,
    pub(crate) counts: u64,
    pub(crate) root: u32,
    pub(crate) round: u32,
    pub(crate) frame_elements: u64,
    pub(crate) bytes: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut to = [0; HEADER];
        to[0..4].copy_from_slice(&MAGIC);
        to[4..6].copy_from_slice(&VERSION.to_le_bytes());
        to[6] = self.operation.code();
        to[7] = match self.reduce {
            None => 0,
            Some(Reduce::Sum) => 1,
            Some(_) => 2,
        };
        to[8..16].copy_from_slice(&self.run.to_le_bytes());
        to[16..24].copy_from_slice(&self.group.to_le_bytes());
        to[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        to[32..40].copy_from_slice(&self.elements.to_le_bytes());
        to[40..48].copy_from_slice(&self.counts.to_le_bytes());
        to[48..52].copy_from_slice(&self.root.to_le_bytes());
        to[52..56].copy_from_slice(&self.round.to_le_bytes());
        let place = |dtype| DTYPES.iter().position(|&known| known == dtype);
        to[56] = self.dtype.and_then(place).map_or(0, |place| place as u8 + 1);
        to[64..72].copy_from_slice(&self.frame_elements.to_le_bytes());
        to[72..80].copy_from_slice(&self.bytes.to_le_bytes());
        to
    }

    /// `None` for what [`encode`](Self::encode) does not make.
    pub(crate) fn decode(from: &[u8; HEADER]) -> Option<Self> {
        let wide = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| from[at + byte]));
        let narrow = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| from[at + byte]));
        let header = Self {
            operation: Operation::of_code(from[6])?,
            reduce: match from[7] {
                0 => None,
                1 => Some(Reduce::Sum),
                _ => Some(Reduce::Max),
            },
            dtype: match from[56] {
                0 => None,
                code => Some(*DTYPES.get(usize::from(code) - 1)?),
            },
            run: wide(8),
            group: wide(16),
            sequence: wide(24),
            elements: wide(32),
            counts: wide(40),
            root: narrow(48),
            round: narrow(52),
            frame_elements: wide(64),
            bytes: wide(72),
        };
        // Magic, version, zeros, and codes that stand for the same: all that the fields do not hold.
        (header.encode() == *from).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            operation: Operation::ReduceScatter,
            reduce: Some(Reduce::Max),
            dtype: Some(DType::U8),
            run: 1 << 63,
            group: 2,
            sequence: 3,
            elements: 4,
            counts: 5,
            root: 6,
            round: 7,
            frame_elements: 8,
            bytes: u64::MAX,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was() {
        assert_eq!(Header::decode(&header().encode()), Some(header()));
        let bare = Header { reduce: None, dtype: None, operation: Operation::Barrier, ..header() };
        assert_eq!(Header::decode(&bare.encode()), Some(bare));
    }

    #[test]
    fn bytes_outside_the_format_are_refused() {
        for (at, wrong) in [(0, b'm'), (4, 9), (6, 200), (7, 3), (56, 7), (60, 1)] {
            let mut bytes = header().encode();
            bytes[at] = wrong;
            assert_eq!(Header::decode(&bytes), None, "byte {at}");
        }
    }
}
