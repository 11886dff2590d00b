//! Reducible: element types that ranks can sum, and find the largest of, so that every order of machines gives the
//! same bits.
//!
//! A sum starts as rank 0's value in [`Reducible::Sum`], takes the other ranks' values in rank order, and is rounded once.
//! Integers wrap. The largest of some floats passes over NaN, as IEEE 754's maximumNumber and NCCL do; of equal values
//! (-0 and +0) the lowest rank's stays.

use crate::scalar::{Elem, Scalar};
use half::{bf16, f16};

/// An element that reductions over ranks are defined for.
pub trait Reducible: Elem {
    /// What sums are made in: the accumulation type of floats, the type itself of integers.
    type Sum: Copy + Default + Send + Sync;

    /// The value as the beginning of a sum. Exact.
    fn begin(self) -> Self::Sum;

    /// `sum` plus this value.
    fn add_to(self, sum: Self::Sum) -> Self::Sum;

    /// The sum, rounded to nearest, ties to even.
    fn end(sum: Self::Sum) -> Self;

    /// The larger of a lower rank's value (`self`) and a higher rank's.
    #[must_use]
    fn larger(self, higher: Self) -> Self;
}

macro_rules! floats {
    ($($t:ty),*) => { $(impl Reducible for $t {
        type Sum = <$t as Scalar>::Acc;
        #[inline]
        fn begin(self) -> Self::Sum { self.widen() }
        #[inline]
        fn add_to(self, sum: Self::Sum) -> Self::Sum { sum + self.widen() }
        #[inline]
        fn end(sum: Self::Sum) -> Self { Self::narrow(sum) }
        #[inline]
        fn larger(self, higher: Self) -> Self {
            let takes = higher > self || self.is_nan();
            if takes { higher } else { self }
        }
    })* };
}
floats!(f32, f64, bf16, f16);

macro_rules! integers {
    ($($t:ty),*) => { $(impl Reducible for $t {
        type Sum = $t;
        #[inline]
        fn begin(self) -> $t { self }
        #[inline]
        fn add_to(self, sum: $t) -> $t { sum.wrapping_add(self) }
        #[inline]
        fn end(sum: $t) -> $t { sum }
        #[inline]
        fn larger(self, higher: $t) -> $t { self.max(higher) }
    })* };
}
integers!(u32, u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_halves_is_rounded_once() {
        // One at a time in bf16, each 1 would be lost beside 256.
        let parts = [256.0_f32, 1.0, 1.0].map(bf16::from_f32);
        let sum = parts[2].add_to(parts[1].add_to(parts[0].begin()));
        assert_eq!(bf16::end(sum).to_f32(), 258.0);
    }

    #[test]
    fn the_largest_passes_over_nan_and_keeps_the_lower_rank_of_equals() {
        assert_eq!(f32::NAN.larger(-1.0), -1.0);
        assert_eq!((-1.0_f32).larger(f32::NAN), -1.0);
        assert!(f32::NAN.larger(f32::NAN).is_nan());
        assert!((-0.0_f32).larger(0.0).is_sign_negative());
        assert!(0.0_f64.larger(-0.0).is_sign_positive());
        assert_eq!(7_u32.larger(9), 9);
    }

    #[test]
    fn integers_wrap() {
        assert_eq!(2_u8.add_to(255), 1);
        assert_eq!(1_u32.add_to(u32::MAX), 0);
    }
}
