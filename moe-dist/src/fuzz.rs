//! For the fuzzer: every decoder of what comes over a wire, on any bytes.

use crate::frame::{HEADER, Header};
use crate::key::Key;
use crate::socket::decoders;

/// What is decoded must be what its encoder makes; all else is refused without a panic.
#[doc(hidden)]
pub fn wire(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk::<HEADER>()
        && let Some(decoded) = Header::decode(header)
    {
        assert_eq!(decoded.encode(), *header);
    }
    decoders(bytes, &Key::new([1; 32]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Operation;

    #[test]
    fn changed_bytes_of_every_kind_are_decoded_or_refused() {
        let header = Header {
            operation: Operation::AllToAll,
            reduce: None,
            dtype: Some(moe_core::DType::F32),
            run: 1,
            group: 2,
            sequence: 3,
            elements: 4,
            counts: 5,
            root: 6,
            round: 7,
            frame_elements: 8,
            bytes: 32,
        };
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for sample in crate::socket::samples().into_iter().chain([header.encode().into()]) {
            wire(&sample);
            for _ in 0..3000 {
                let mut bytes = sample.clone();
                for _ in 0..=random(4) {
                    let at = random(bytes.len());
                    bytes[at] = random(256) as u8;
                }
                bytes.truncate(1 + random(2 * bytes.len()));
                wire(&bytes);
            }
        }
    }
}
