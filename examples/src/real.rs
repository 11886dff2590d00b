//! The floating-point types that the dense parts of the model run in.

use moe_core::Accum;
use ndarray::{LinalgScalar, ScalarOperand};
use std::iter::Sum;

/// `f32` for training, `f64` for checking gradients by finite differences.
///
/// The dense parts run on the host with std's elementary functions, which are fast. Routing has its own
/// (`fixed_exp` and the like), whose bits are the same everywhere.
pub trait Real: Accum + LinalgScalar + ScalarOperand + Sum {
    /// e^self
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;

    /// 1 / (1 + e^-self)
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

macro_rules! real {
    ($($t:ident),*) => { $(impl Real for $t {
        fn exp(self) -> $t { <$t>::exp(self) }
        fn ln(self) -> $t { <$t>::ln(self) }
        fn sqrt(self) -> $t { <$t>::sqrt(self) }
    })* };
}
real!(f32, f64);
