//! Mean cross-entropy of the next byte.

use crate::real::Real;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, Axis};

/// The sum of `ln(sum(e^logits)) - logits[target]` over the tokens, divided by the `step` tokens of all ranks: a rank's share of
/// the mean, in nats. The logits (T, 256) turn into their gradient, `(softmax - onehot) / step`.
pub fn cross_entropy<R: Real>(logits: &mut Array2<R>, targets: &[u8], step: usize) -> f64 {
    let share = R::of(1.0 / step as f64);
    let losses: Vec<f64> = logits
        .axis_iter_mut(Axis(0))
        .into_par_iter()
        .zip(targets)
        .map(|(mut row, &target)| {
            let target = usize::from(target);
            let largest = row.iter().fold(row[0], |most, &logit| if logit > most { logit } else { most });
            let chosen = row[target] - largest;
            let mut sum = R::ZERO;
            for logit in &mut row {
                *logit = (*logit - largest).exp();
                sum += *logit;
            }
            let scale = share / sum;
            row.map_inplace(|exp| *exp *= scale);
            row[target] -= share;
            (sum.ln() - chosen).to_f64()
        })
        .collect();
    losses.iter().sum::<f64>() / step as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::{expect_gradient, random};

    #[test]
    fn equal_logits_cost_8_bits() {
        let mut logits = Array2::<f32>::from_elem((3, 256), 1000.0);
        let loss = cross_entropy(&mut logits, b"abc", 3);
        assert!((loss / std::f64::consts::LN_2 - 8.0).abs() < 1e-6);
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let logits = random((3, 256), 1) * 4.0;
        let mut grad = logits.clone();
        cross_entropy(&mut grad, b"xyz", 5);
        expect_gradient("logits", &logits, &grad, |logits| cross_entropy(&mut logits.clone(), b"xyz", 5));
    }
}
