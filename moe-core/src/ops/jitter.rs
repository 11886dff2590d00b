//! Input jitter (Fedus et al., "Switch Transformers", 2021): the router sees `x * u` with `u` uniform around 1.
//!
//! `u` is a hash of (seed, step, layer, global token, d), so it is the same on every backend and for every split of
//! the tokens over calls and ranks, and backward finds it again without storing it.

use crate::error::{OpId, ShapeError, expect};
use crate::scalar::Accum;

/// Number of words of a [`Stamp`] on the device.
pub const STAMP: usize = 7;

/// What a step's pseudo-random numbers and forced balance depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// the caller's seed
    pub seed: u64,
    /// the step's number
    pub step: u64,
    /// the layer's number
    pub layer: u32,
    /// global number of the call's first token
    pub first_token: u64,
}

impl Stamp {
    /// The words as ops read them: each 64-bit value low word first, in the order of the fields.
    pub fn words(&self) -> [u32; STAMP] {
        let (low, high) = (|v: u64| v as u32, |v: u64| (v >> 32) as u32);
        [
            low(self.seed),
            high(self.seed),
            low(self.step),
            high(self.step),
            self.layer,
            low(self.first_token),
            high(self.first_token),
        ]
    }

    /// The stamp of these words.
    pub fn of(words: &[u32; STAMP]) -> Self {
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Self {
            seed: join(words[0], words[1]),
            step: join(words[2], words[3]),
            layer: words[4],
            first_token: join(words[5], words[6]),
        }
    }
}

/// Jitter with amplitude `amplitude`: factors lie in `1 - amplitude .. 1 + amplitude`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter {
    /// half the width of the interval, in 0 to 1
    pub amplitude: f32,
}

impl Jitter {
    /// Hash of everything but d. `token` counts from the call's first token.
    pub fn key(stamp: &Stamp, token: usize) -> u32 {
        let token = stamp.first_token.wrapping_add(token as u64);
        let words = Stamp { first_token: token, ..*stamp }.words();
        words.iter().fold(0x9e37_79b9, |key, word| mix(key ^ word).wrapping_add(0x9e37_79b9))
    }

    /// The factor of element `d` under a token's key: the top 24 bits of the hash as a fraction `v`, then
    /// `fma(2 * amplitude, v, 1 - amplitude)` in f32.
    pub fn factor(self, key: u32, d: usize) -> f32 {
        let bits = mix(key ^ (d as u32).wrapping_mul(0x85eb_ca6b)) >> 8;
        let fraction = bits as f32 * (1.0 / 16_777_216.0);
        libm::fmaf(2.0 * self.amplitude, fraction, 1.0 - self.amplitude)
    }
}

/// Murmur3's finalizer.
fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Element `d` of a row as the router sees it.
pub(crate) fn jittered<A: Accum>(jitter: Option<Jitter>, key: u32, d: usize, value: A) -> A {
    match jitter {
        Some(jitter) => value * A::of(jitter.factor(key, d).into()),
        None => value,
    }
}

/// A stamp must be there if something depends on it.
pub(crate) fn check_stamp(op: OpId, needed: bool, stamp: Option<usize>) -> Result<(), ShapeError> {
    match stamp {
        Some(len) => expect(op, "stamp", &[STAMP], len),
        None if needed => Err(ShapeError::Combination {
            op,
            what: "stamp",
            why: "is missing, but jitter or forced balance needs it",
        }),
        None => Ok(()),
    }
}

/// The stamp of an op's argument; zeros without one.
pub(crate) fn read_stamp(words: Option<&[u32]>) -> Stamp {
    words.and_then(|words| words.try_into().ok()).map_or_else(Stamp::default, Stamp::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_words() {
        let stamp = Stamp { seed: u64::MAX - 1, step: 1 << 40, layer: 7, first_token: 5 };
        assert_eq!(Stamp::of(&stamp.words()), stamp);
    }

    #[test]
    fn the_factor_belongs_to_the_global_token() {
        let stamp = Stamp { seed: 3, step: 9, layer: 1, first_token: 100 };
        let later = Stamp { first_token: 103, ..stamp };
        assert_eq!(Jitter::key(&stamp, 5), Jitter::key(&later, 2));
        assert_ne!(Jitter::key(&stamp, 5), Jitter::key(&stamp, 6));
    }

    #[test]
    fn factors_fill_their_interval_evenly() {
        let jitter = Jitter { amplitude: 0.25 };
        let key = Jitter::key(&Stamp::default(), 0);
        let all: [f32; 4096] = core::array::from_fn(|d| jitter.factor(key, d));
        let mean = all.iter().sum::<f32>() / 4096.0;
        assert!(all.iter().all(|f| (0.75..=1.25).contains(f)));
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        assert!(all.iter().any(|f| *f < 0.76) && all.iter().any(|f| *f > 1.24));
    }
}
