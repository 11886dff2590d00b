//! Files taken apart and put together again, with something changed.

use serde_json::{Map, Value};

/// A file's header and what follows it.
#[derive(Clone)]
pub(crate) struct Parts {
    /// the JSON header
    pub(crate) header: Map<String, Value>,
    /// the tensors' bytes
    pub(crate) data: Vec<u8>,
}

impl Parts {
    pub(crate) fn of(file: &[u8]) -> Self {
        let (length, rest) = file.split_first_chunk::<8>().expect("a header's length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Self { header: serde_json::from_slice(header).expect("a header"), data: data.to_vec() }
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).expect("JSON");
        [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat()
    }

    /// The metadata entry `case`.
    pub(crate) fn case(&self) -> Value {
        let text = self.header["__metadata__"]["case"].as_str().expect("a string");
        serde_json::from_str(text).expect("JSON in JSON")
    }

    /// Puts another entry `case` in its place.
    pub(crate) fn set_case(&mut self, case: &Value) {
        self.header["__metadata__"]["case"] = Value::String(case.to_string());
    }

    /// Where a tensor's bytes are.
    pub(crate) fn range(&self, tensor: &str) -> std::ops::Range<usize> {
        let at = |end: usize| self.header[tensor]["data_offsets"][end].as_u64().expect("an offset") as usize;
        at(0)..at(1)
    }
}

/// Numbers from a fixed seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if there is none.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }
}
