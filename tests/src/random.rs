//! Random: repeatable inputs.

use moe_core::{Accum, Scalar};

/// A small generator (SplitMix64: Steele, Lea and Flood, 2014). Equal seeds give equal inputs everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`, which must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Uniform in -1 to 1.
    pub fn signed(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    /// Values uniform in `-scale` to `scale`, rounded to `T`.
    pub fn scaled<T: Scalar>(&mut self, len: usize, scale: f64) -> Vec<T> {
        (0..len).map(|_| T::narrow(T::Acc::of(scale * self.signed()))).collect()
    }

    /// Values uniform in -1 to 1, rounded to `T`.
    pub fn values<T: Scalar>(&mut self, len: usize) -> Vec<T> {
        self.scaled(len, 1.0)
    }

    /// Values uniform in 0.1 to 0.9, as scores are.
    pub fn scores<T: Scalar>(&mut self, len: usize) -> Vec<T> {
        (0..len).map(|_| T::narrow(T::Acc::of(0.5 + 0.4 * self.signed()))).collect()
    }

    /// The numbers below `len` in random order.
    pub fn permutation(&mut self, len: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..len as u32).collect();
        for last in (1..len).rev() {
            all.swap(last, self.below(last + 1));
        }
        all
    }

    /// `top_k` different experts for each token.
    pub fn ids(&mut self, tokens: usize, top_k: usize, experts: usize) -> Vec<u32> {
        let mut ids = Vec::with_capacity(tokens * top_k);
        for _ in 0..tokens {
            ids.extend(&self.permutation(experts)[..top_k]);
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_values() {
        assert_eq!(Random::new(3).values::<f32>(9), Random::new(3).values::<f32>(9));
        assert_ne!(Random::new(3).values::<f32>(9), Random::new(4).values::<f32>(9));
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut all = Random::new(1).permutation(50);
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<u32>>());
    }

    #[test]
    fn signed_values_fill_their_interval() {
        let values: Vec<f64> = Random::new(2).values(2000);
        assert!(values.iter().all(|v| (-1.0..=1.0).contains(v)));
        assert!(values.iter().any(|v| *v < -0.99) && values.iter().any(|v| *v > 0.99));
    }
}
