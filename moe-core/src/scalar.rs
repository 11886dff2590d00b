//! Element types: what a buffer can hold, and how storage types widen to the type sums are made in.

use crate::reducible::Reducible;
use bytemuck::Pod;
use core::fmt;
use half::{bf16, f16};
use num_traits::NumAssign;

/// Name of an element type, for checkpoints and messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit IEEE float
    F32,
    /// 64-bit IEEE float
    F64,
    /// bfloat16: 8 exponent bits, 7 fraction bits
    Bf16,
    /// 16-bit IEEE float
    F16,
    /// 32-bit unsigned integer
    U32,
    /// byte
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::U32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::U32 => "u32",
            Self::U8 => "u8",
        })
    }
}

/// Plain data that device memory can hold.
pub trait Elem: Pod + Default + Send + Sync + fmt::Debug + PartialEq {
    /// The type's name.
    const DTYPE: DType;
}

/// A type that weights and activations are stored in. Arithmetic happens in [`Scalar::Acc`].
pub trait Scalar: Reducible {
    /// The accumulation type: `f32`, or `f64` for `f64`.
    type Acc: Accum;
    /// Exact.
    fn widen(self) -> Self::Acc;
    /// Rounds to nearest, ties to even.
    fn narrow(value: Self::Acc) -> Self;
}

/// An accumulation type, with elementary functions whose bits do not depend on crate features, the
/// platform or the presence of `std`. The names start with `fixed_` because std's inherent methods
/// of the plain names would silently win on a concrete `f32`.
pub trait Accum: Scalar<Acc = Self> + NumAssign + PartialOrd + core::ops::Neg<Output = Self> {
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// -infinity
    const NEG_INFINITY: Self;
    /// Rounds to nearest.
    fn of(value: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// `self * a + b`, rounded once.
    fn fused(self, a: Self, b: Self) -> Self;
    /// e^self; subnormal results are kept.
    fn fixed_exp(self) -> Self;
    /// Natural logarithm.
    fn fixed_ln(self) -> Self;
    /// Hyperbolic tangent.
    fn fixed_tanh(self) -> Self;
    /// Error function.
    fn fixed_erf(self) -> Self;
    /// Correctly rounded square root.
    fn fixed_sqrt(self) -> Self;
    /// Neither NaN nor infinite.
    fn finite(self) -> bool;

    /// 1 / (1 + e^-self), without overflow on either side.
    fn fixed_sigmoid(self) -> Self {
        if self < Self::ZERO {
            let e = self.fixed_exp();
            e / (Self::ONE + e)
        } else {
            Self::ONE / (Self::ONE + (-self).fixed_exp())
        }
    }

    /// The value of a count or an index, rounded to nearest.
    fn count(value: usize) -> Self {
        Self::of(value as f64)
    }
}

macro_rules! elem {
    ($($t:ty => $d:ident),*) => { $(impl Elem for $t { const DTYPE: DType = DType::$d; })* };
}
elem!(f32 => F32, f64 => F64, bf16 => Bf16, f16 => F16, u32 => U32, u8 => U8);

macro_rules! half_scalar {
    ($($t:ty),*) => { $(impl Scalar for $t {
        type Acc = f32;
        #[inline]
        fn widen(self) -> f32 { self.to_f32() }
        #[inline]
        fn narrow(value: f32) -> Self { Self::from_f32(value) }
    })* };
}
half_scalar!(bf16, f16);

macro_rules! accum {
    ($t:ident, $fma:path, $sqrt:path, $exp:expr) => {
        impl Scalar for $t {
            type Acc = $t;
            #[inline]
            fn widen(self) -> $t {
                self
            }
            #[inline]
            fn narrow(value: $t) -> $t {
                value
            }
        }
        impl Accum for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            const NEG_INFINITY: $t = $t::NEG_INFINITY;
            #[inline]
            fn of(value: f64) -> $t {
                value as $t
            }
            #[inline]
            fn to_f64(self) -> f64 {
                self.into()
            }
            #[inline]
            fn fused(self, a: $t, b: $t) -> $t {
                $fma(self, a, b)
            }
            #[inline]
            fn fixed_exp(self) -> $t {
                ($exp)(self)
            }
            fn fixed_ln(self) -> $t {
                libm::log(self.into()) as $t
            }
            fn fixed_tanh(self) -> $t {
                libm::tanh(self.into()) as $t
            }
            fn fixed_erf(self) -> $t {
                libm::erf(self.into()) as $t
            }
            fn fixed_sqrt(self) -> $t {
                $sqrt(self)
            }
            #[inline]
            fn finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
accum!(f32, libm::fmaf, libm::sqrtf, exp32);
accum!(f64, libm::fma, libm::sqrt, libm::exp);

/// The constants of [`Accum::fixed_exp`] for `f32`, for backends that must repeat its bits: with
/// `n = fma(x, LOG2_E, SHIFT) - SHIFT` and `r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))`, the result is
/// Horner's rule by fused steps over `TERMS` in `r`, times `2^(n >> 1)`, times `2^(n - (n >> 1))`.
/// Above `MAX` it is infinity, below `MIN` it is 0, NaN stays.
pub mod exp {
    /// log2(e)
    pub const LOG2_E: f32 = core::f32::consts::LOG2_E;
    /// 1.5 * 2^23: adding it rounds to an integer
    pub const SHIFT: f32 = 12_582_912.0;
    /// High part of ln 2; its product with any exponent is exact
    pub const LN2_HIGH: f32 = 0.693_359_4;
    /// ln 2 - `LN2_HIGH`
    pub const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Above it e^x is infinite in f32
    pub const MAX: f32 = 88.722_84;
    /// Below it e^x rounds to 0 in f32
    pub const MIN: f32 = -103.972_08;
    /// 1/7!, 1/6!, ..., 1/1!, 1/0!
    pub const TERMS: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
}

#[inline]
fn exp32(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x > exp::MAX {
        return f32::INFINITY;
    }
    if x < exp::MIN {
        return 0.0;
    }
    let n = libm::fmaf(x, exp::LOG2_E, exp::SHIFT) - exp::SHIFT;
    let r = libm::fmaf(n, -exp::LN2_HIGH, x);
    let r = libm::fmaf(n, -exp::LN2_LOW, r);
    let mut sum = exp::TERMS[0];
    for term in &exp::TERMS[1..] {
        sum = libm::fmaf(sum, r, *term);
    }
    let n = n as i32;
    let half = n >> 1;
    // Two exact powers of two, so that a subnormal result is rounded once.
    sum * power_of_two(half) * power_of_two(n - half)
}

#[inline]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -103.9_f32;
        while x < 88.7 {
            let (got, want) = (x.fixed_exp(), libm::exp(x.into()));
            let unit = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            assert!((f64::from(got) - want).abs() <= 2.0 * unit, "exp({x}) = {got}, wanted {want}");
            x += 0.013;
        }
    }

    #[test]
    fn exp_has_its_limits() {
        assert_eq!(f32::INFINITY.fixed_exp(), f32::INFINITY);
        assert_eq!(f32::NEG_INFINITY.fixed_exp(), 0.0);
        assert_eq!(0.0_f32.fixed_exp(), 1.0);
        assert!(f32::NAN.fixed_exp().is_nan());
        assert_eq!((-103.5_f32).fixed_exp(), f32::from_bits(1));
        assert!(88.722_f32.fixed_exp().is_finite());
    }

    #[test]
    fn sigmoid_is_stable_on_both_sides() {
        assert_eq!(200.0_f32.fixed_sigmoid(), 1.0);
        assert_eq!((-200.0_f32).fixed_sigmoid(), 0.0);
        assert_eq!(0.0_f64.fixed_sigmoid(), 0.5);
        assert!((-90.0_f32).fixed_sigmoid() > 0.0);
    }
}
