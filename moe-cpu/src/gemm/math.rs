//! Elementary functions of vectors.

use super::simd::Simd;
use moe_core::exp;

/// A function of one variable and its derivative.
pub(crate) struct Half<V> {
    pub(crate) value: V,
    pub(crate) slope: V,
}

/// Horner's rule by fused steps; the highest coefficient first.
#[inline(always)]
fn horner<S: Simd>(s: S, x: S::V, terms: &[f32]) -> S::V {
    let mut sum = s.splat(terms[0]);
    for term in &terms[1..] {
        sum = s.fma(sum, x, s.splat(*term));
    }
    sum
}

/// e^x, by the recipe in [`moe_core::exp`].
#[inline(always)]
pub(crate) fn e_to_the<S: Simd>(s: S, x: S::V) -> S::V {
    // Just beyond the limits, where the recipe itself gives 0 and infinity; NaN passes through.
    let x = s.max(s.splat(exp::MIN - 0.5), s.min(s.splat(exp::MAX + 0.5), x));
    let shift = s.splat(exp::SHIFT);
    let n = s.sub(s.fma(x, s.splat(exp::LOG2_E), shift), shift);
    let r = s.fma(n, s.splat(-exp::LN2_HIGH), x);
    let r = s.fma(n, s.splat(-exp::LN2_LOW), r);
    s.scale(horner(s, r, &exp::TERMS), n)
}

/// 1 / (1 + e^-x), without overflow on either side.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let e = e_to_the(s, s.select_lt(x, zero, x, s.sub(zero, x)));
    s.div(s.select_lt(x, zero, e, one), s.add(one, e))
}

/// 1 above `bound`, -1 below `-bound`, else `value`.
#[inline(always)]
fn saturate<S: Simd>(s: S, x: S::V, bound: f32, value: S::V) -> S::V {
    let value = s.select_lt(s.splat(bound), x, s.splat(1.0), value);
    s.select_lt(x, s.splat(-bound), s.splat(-1.0), value)
}

/// The hyperbolic tangent as an odd rational function, which is 1 in f32 beyond the bound.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    const BOUND: f32 = 7.905_311;
    let square = s.min(s.splat(BOUND * BOUND), s.mul(x, x));
    let above = horner(
        s,
        square,
        &[
            -2.760_768_5e-16,
            2.000_188e-13,
            -8.604_672e-11,
            5.122_297e-8,
            1.485_722_4e-5,
            6.372_619_3e-4,
            4.893_524_6e-3,
        ],
    );
    let below = horner(s, square, &[1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3]);
    saturate(s, x, BOUND, s.div(s.mul(x, above), below))
}

/// The error function as an odd rational function, which is 1 in f32 beyond the bound.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    const BOUND: f32 = 4.0;
    let square = s.min(s.splat(BOUND * BOUND), s.mul(x, x));
    let above = horner(
        s,
        square,
        &[
            -2.726_142_3e-10,
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ],
    );
    let below =
        horner(s, square, &[-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2]);
    saturate(s, x, BOUND, s.div(s.mul(x, above), below))
}

/// `x * (1 + erf(x / sqrt 2)) / 2`
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> Half<S::V> {
    let half = s.splat(0.5);
    let cdf = s.mul(half, s.add(s.splat(1.0), erf(s, s.mul(x, s.splat(core::f32::consts::FRAC_1_SQRT_2)))));
    let density = s.mul(s.splat(0.398_942_3), e_to_the(s, s.mul(s.mul(s.splat(-0.5), x), x)));
    Half { value: s.mul(x, cdf), slope: s.add(cdf, s.mul(x, density)) }
}

/// Gelu with tanh in the place of erf.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> Half<S::V> {
    let (half, one, root, cubic) = (s.splat(0.5), s.splat(1.0), s.splat(0.797_884_6), s.splat(0.044_715));
    let square = s.mul(x, x);
    let t = tanh(s, s.mul(root, s.fma(s.mul(cubic, square), x, x)));
    let inner = s.mul(root, s.fma(s.mul(s.splat(3.0), cubic), square, one));
    let cdf = s.mul(half, s.add(one, t));
    let bend = s.mul(s.mul(s.mul(half, x), s.sub(one, s.mul(t, t))), inner);
    Half { value: s.mul(x, cdf), slope: s.add(cdf, bend) }
}
