//! Random numbers that are a function of where they are used: no state to save, so a resumed run draws the
//! same ones as an unbroken run.

/// A sequence of random numbers, named by a seed and a position (a step, a parameter).
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The sequence number `position` of `seed`.
    pub fn new(seed: u64, position: u64) -> Self {
        let mut rng = Self { state: seed };
        let key = rng.bits();
        Self { state: key ^ position.wrapping_mul(0xd134_2543_de82_ef95) }
    }

    /// The next 64 random bits (SplitMix64).
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; `bound` must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A number in (0, 1].
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// A number from the standard normal distribution (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_names_a_sequence() {
        let draw = |seed, position| -> Vec<u64> {
            let mut rng = Rng::new(seed, position);
            (0..4).map(|_| rng.bits()).collect()
        };
        assert_eq!(draw(1, 7), draw(1, 7));
        assert_ne!(draw(1, 7), draw(1, 8));
        assert_ne!(draw(1, 7), draw(2, 7));
    }

    #[test]
    fn normal_has_mean_0_and_variance_1() {
        let mut rng = Rng::new(3, 0);
        let draws: Vec<f64> = (0..20_000).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
    }

    #[test]
    fn below_stays_below() {
        let mut rng = Rng::new(5, 0);
        let draws: Vec<usize> = (0..200).map(|_| rng.below(3)).collect();
        assert!((0..3).all(|value| draws.contains(&value)) && draws.iter().all(|&draw| draw < 3));
    }
}
