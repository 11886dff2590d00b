//! The learning rate: a linear warm-up, then a cosine down to a tenth.

/// Steps that warm up, however long the run is: so a short run begins as a long one does. A rate that rises in few steps lets
/// differences in rounding grow, since more and more tokens are sent to other experts.
const WARM_UP: u64 = 200;
/// Rate at the end, relative to the largest.
const END: f64 = 0.1;

/// The rate of a step (from 0) of a run of `steps` steps, relative to the largest.
pub fn rate(step: u64, steps: u64) -> f64 {
    if step < WARM_UP {
        return (step + 1) as f64 / WARM_UP as f64;
    }
    let progress = (step - WARM_UP) as f64 / steps.saturating_sub(WARM_UP).max(1) as f64;
    END + (1.0 - END) * 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_1_and_falls_to_a_tenth() {
        let rates: Vec<f64> = (0..600).map(|step| rate(step, 600)).collect();
        assert!(rates[..200].is_sorted());
        assert_eq!(rates[199], 1.0);
        assert!(rates[200..].is_sorted_by(|a, b| a > b));
        assert!((rates[599] - 0.1).abs() < 1e-3);
    }

    #[test]
    fn a_short_run_begins_as_a_long_one() {
        assert!((0..200).all(|step| rate(step, 1) == rate(step, 600)));
        assert!(rate(0, 0) > 0.0 && rate(300, 60) > 0.0);
    }
}
