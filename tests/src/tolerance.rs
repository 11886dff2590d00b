//! Tolerance: how far a device's values may lie from the reference's.
//!
//! The measure is `max |got - want| / max(max |want|, floor)` over one argument. Elements that the reference did not
//! write must not be written, infinities must agree, and NaN stands where NaN stood.

use crate::values::{Cell, Values};
use moe_core::{DType, Scalar};

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// largest difference, relative to the argument's largest value; 0 for equal bits
    pub relative: f64,
    /// smallest value that differences are related to
    pub floor: f64,
}

/// Where and how two results differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mismatch {
    /// place in the values, guards included
    pub at: usize,
    /// what the reference has there
    pub want: Cell,
    /// what the device has there
    pub got: Cell,
    /// the measure of the whole argument; infinite where no number says it
    pub measure: f64,
}

impl Tolerance {
    /// Equal bits.
    pub const EXACT: Self = Self { relative: 0.0, floor: 1e-6 };

    /// For results that are rounded to the storage type `T`.
    pub fn stored<T: Scalar>() -> Self {
        Self::relative(match T::DTYPE {
            DType::F64 => 1e-12,
            DType::F32 => 2e-5,
            DType::F16 => 2.5e-3,
            _ => 2e-2,
        })
    }

    /// For gradients of a layer with storage type `T`.
    pub fn gradient<T: Scalar>() -> Self {
        Self::relative(match T::DTYPE {
            DType::F64 => 1e-12,
            DType::F32 => 5e-5,
            DType::F16 => 5e-3,
            _ => 4e-2,
        })
    }

    /// For values that are computed from values of the accumulation type of `T`, without rounding between.
    pub fn sum<T: Scalar>() -> Self {
        Self::stored::<T::Acc>()
    }

    /// Relative to the argument's largest value.
    pub fn relative(relative: f64) -> Self {
        Self { relative, ..Self::EXACT }
    }

    /// The same with another floor: for results that cancel to almost nothing.
    pub fn floor(self, floor: f64) -> Self {
        Self { floor, ..self }
    }

    /// The worst difference, if there is one that is too large.
    pub fn compare(&self, want: &Values, got: &Values) -> Option<Mismatch> {
        let (mut largest, mut worst, mut place) = (self.floor, 0.0, 0);
        for at in 0..want.len() {
            let (w, g) = (want.cell(at), got.cell(at));
            let both_nan = w.value.is_nan() && g.value.is_nan() && w.poison == g.poison;
            if w.bits == g.bits || both_nan {
                if w.value.is_finite() {
                    largest = f64::max(largest, w.value.abs());
                }
                continue;
            }
            let wrong = w.poison || g.poison || !w.value.is_finite() || !g.value.is_finite();
            if wrong || self.relative == 0.0 {
                return Some(Mismatch { at, want: w, got: g, measure: f64::INFINITY });
            }
            largest = f64::max(largest, w.value.abs());
            let difference = (w.value - g.value).abs();
            if difference > worst {
                (worst, place) = (difference, at);
            }
        }
        let measure = worst / largest;
        (measure > self.relative).then(|| Mismatch {
            at: place,
            want: want.cell(place),
            got: got.cell(place),
            measure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differ(tolerance: Tolerance, want: &[f32], got: &[f32]) -> Option<usize> {
        let (want, got) = (Values::of(want.to_vec()), Values::of(got.to_vec()));
        tolerance.compare(&want, &got).map(|mismatch| mismatch.at)
    }

    #[test]
    fn differences_are_related_to_the_largest_value() {
        let close = Tolerance::relative(1e-2);
        assert_eq!(differ(close, &[100.0, 0.1], &[100.0, 0.9]), None);
        assert_eq!(differ(close, &[1.0, 0.1], &[1.0, 0.9]), Some(1));
    }

    #[test]
    fn exact_means_the_same_bits() {
        assert_eq!(differ(Tolerance::EXACT, &[0.0], &[-0.0]), Some(0));
        assert_eq!(differ(Tolerance::EXACT, &[f32::NAN], &[-f32::NAN]), None);
    }

    #[test]
    fn what_is_not_a_number_must_agree() {
        let close = Tolerance::relative(1.0);
        assert_eq!(differ(close, &[f32::INFINITY], &[f32::NEG_INFINITY]), Some(0));
        assert_eq!(differ(close, &[1.0, 2.0], &[1.0, f32::NAN]), Some(1));
        assert_eq!(differ(close, &[1.0, f32::NAN], &[1.0, 2.0]), Some(1));
    }

    #[test]
    fn unwritten_and_overwritten_elements_are_found() {
        let close = Tolerance::relative(1.0);
        let poison = Values::poisoned::<f32>(1)[0];
        assert_eq!(differ(close, &[1.0, 2.0], &[1.0, poison]), Some(1));
        assert_eq!(differ(close, &[1.0, poison], &[1.0, 2.0]), Some(1));
        assert_eq!(differ(close, &[poison], &[f32::NAN]), Some(0));
        assert_eq!(differ(close, &[poison], &[poison]), None);
    }
}
