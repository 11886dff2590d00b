//! The learning rate: a linear warm-up, then a cosine down to a tenth.

/// Share of the run that warms up, and the most steps it takes.
const WARM_UP_SHARE: u64 = 10;
const WARM_UP_LIMIT: u64 = 50;
/// Rate at the end, relative to the largest.
const END: f64 = 0.1;

/// The rate of a step (from 0) of a run of `steps` steps, relative to the largest.
pub fn rate(step: u64, steps: u64) -> f64 {
    let warm_up = (steps / WARM_UP_SHARE).clamp(1, WARM_UP_LIMIT);
    if step < warm_up {
        return (step + 1) as f64 / warm_up as f64;
    }
    let progress = (step - warm_up) as f64 / steps.saturating_sub(warm_up).max(1) as f64;
    END + (1.0 - END) * 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_1_and_falls_to_a_tenth() {
        let rates: Vec<f64> = (0..600).map(|step| rate(step, 600)).collect();
        assert!(rates[..50].is_sorted());
        assert_eq!(rates[49], 1.0);
        assert!(rates[50..].is_sorted_by(|a, b| a > b));
        assert!((rates[599] - 0.1).abs() < 1e-3);
    }

    #[test]
    fn the_shortest_runs_have_a_rate_too() {
        assert_eq!(rate(0, 1), 1.0);
        assert!(rate(1, 2) > 0.0 && rate(7, 2) > 0.0);
    }
}
