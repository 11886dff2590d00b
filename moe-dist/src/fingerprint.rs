//! Fingerprint: what a rank says it has called, and whether all have called the same.

use crate::frame::Header;
use std::fmt::Write;

/// Digest of the counts per rank (FNV-1a over their little-endian bytes), never 0.
pub(crate) fn digest(counts: &[usize]) -> u64 {
    let mut digest: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in counts.iter().flat_map(|&count| (count as u64).to_le_bytes()) {
        digest = (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    digest.max(1)
}

/// The header without what belongs to one frame of one pair.
pub(crate) fn of(header: &Header) -> Header {
    Header { frame_elements: 0, bytes: 0, ..*header }
}

/// In words: `all_reduce 17 (sum) of 4096 f32`.
pub(crate) fn words(header: &Header, group: Option<&str>) -> String {
    let Header { operation, sequence, .. } = header;
    let mut words = format!("{} {sequence}", operation.name());
    // Writing to a string does not fail.
    if let Some(reduce) = header.reduce {
        let _ = write!(words, " ({})", format!("{reduce:?}").to_lowercase());
    }
    if let Some(dtype) = header.dtype {
        let _ = match header.elements {
            0 => write!(words, " of {dtype}"),
            elements => write!(words, " of {elements} {dtype}"),
        };
    }
    if header.counts != 0 {
        let _ = write!(words, " in parts #{:08x}", header.counts as u32);
    }
    if header.operation == crate::frame::Operation::Broadcast {
        let _ = write!(words, " from rank {}", header.root);
    }
    if header.round != 0 {
        let _ = write!(words, ", round {}", header.round);
    }
    match group {
        Some(group) => words + " in group " + group,
        None => words,
    }
}

/// The fingerprint of most ranks, of equals the lowest rank's, and the first one that differs. `None` if all are equal.
pub(crate) fn odd_one(all: &[Header]) -> Option<(usize, usize)> {
    let votes = |one: &Header| all.iter().filter(|other| *other == one).count();
    let most = all.iter().map(votes).max()?;
    let common = all.iter().position(|one| votes(one) == most)?;
    let odd = all.iter().position(|one| *one != all[common])?;
    Some((common, odd))
}
