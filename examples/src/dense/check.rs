//! Finite differences, for the tests of the backward passes.

use crate::rng::Rng;
use ndarray::{Array, Dimension, ShapeBuilder};

/// Values between -1 and 1.
pub(crate) fn random<Sh: ShapeBuilder>(shape: Sh, seed: u64) -> Array<f64, Sh::Dim> {
    let mut rng = Rng::new(seed, 0);
    Array::from_shape_simple_fn(shape, || 2.0 * rng.uniform() - 1.0)
}

/// Compares `grad` with the central differences of `loss` at `at`.
///
/// The error of central differences in f64 with this step is about 1e-10 times the third derivative.
pub(crate) fn expect_gradient<Dim: Dimension>(
    what: &str,
    at: &Array<f64, Dim>,
    grad: &Array<f64, Dim>,
    mut loss: impl FnMut(&Array<f64, Dim>) -> f64,
) {
    assert_eq!(at.shape(), grad.shape(), "{what}");
    let step = 1e-5;
    let mut moved = at.clone();
    for (index, (&value, &got)) in at.iter().zip(grad).enumerate() {
        let mut loss_at = |value| {
            *moved.iter_mut().nth(index).expect("the index is in range") = value;
            loss(&moved)
        };
        let want = (loss_at(value + step) - loss_at(value - step)) / (2.0 * step);
        loss_at(value);
        assert!((got - want).abs() < 1e-7 * (1.0 + want.abs()), "{what}[{index}] is {got}, wanted {want}");
    }
}
