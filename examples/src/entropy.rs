//! What simple counting knows about a text, to hold a model's loss against.
//!
//! Both figures are cross-entropies in bits per byte on the held-out part, with counts from the training
//! part, so they are measured as the model is. The smoothing gives bytes and pairs that the training part
//! lacks a small probability:
//!
//! ```text
//! unigram   p(b)     = (count(b) + 1) / (bytes + 256)
//! bigram    p(b | a) = (count(a b) + p(b)) / (count(a) + 1)
//! ```

/// Bits per byte of models that count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entropy {
    /// each byte by itself
    pub unigram: f64,
    /// each byte after the one before it
    pub bigram: f64,
}

impl Entropy {
    /// Counts in `training`, measures on `held_out`. The first held-out byte is context only.
    pub fn measure(training: &[u8], held_out: &[u8]) -> Self {
        let mut singles = [0_u32; 256];
        let mut pairs = vec![[0_u32; 256]; 256];
        for &byte in training {
            singles[usize::from(byte)] += 1;
        }
        for pair in training.windows(2) {
            pairs[usize::from(pair[0])][usize::from(pair[1])] += 1;
        }
        let single = |b: usize| (f64::from(singles[b]) + 1.0) / (training.len() as f64 + 256.0);
        let after: Vec<f64> =
            pairs.iter().map(|row| row.iter().map(|&count| f64::from(count)).sum::<f64>() + 1.0).collect();

        let (mut unigram, mut bigram) = (0.0, 0.0);
        for pair in held_out.windows(2) {
            let (a, b) = (usize::from(pair[0]), usize::from(pair[1]));
            unigram -= single(b).log2();
            bigram -= ((f64::from(pairs[a][b]) + single(b)) / after[a]).log2();
        }
        let bytes = held_out.len().saturating_sub(1).max(1) as f64;
        Self { unigram: unigram / bytes, bigram: bigram / bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alternating_text_costs_one_bit_by_bytes_and_none_by_pairs() {
        let text = b"ab".repeat(5000);
        let entropy = Entropy::measure(&text, &text[..1000]);
        assert!((entropy.unigram - 1.0).abs() < 0.05, "{entropy:?}");
        assert!(entropy.bigram < 0.01, "{entropy:?}");
    }

    #[test]
    fn an_unseen_byte_has_a_price_but_no_infinite_one() {
        let entropy = Entropy::measure(b"aaaaaaaa", b"aza");
        assert!(entropy.unigram.is_finite() && entropy.bigram.is_finite());
        assert!(entropy.unigram > 1.0);
    }

    #[test]
    fn the_bigram_probabilities_of_a_context_add_up_to_1() {
        let training = b"the cat sat on the mat";
        let total: f64 = (0..=255_u8).map(|b| (-Entropy::measure(training, &[b'a', b]).bigram).exp2()).sum();
        assert!((total - 1.0).abs() < 1e-9, "{total}");
    }
}
