//! What an expert does between its two products, and its derivative.

use crate::scalar::Accum;

/// The function between an expert's up and down products. Gated functions read two halves of the
/// up-projection, gate half `g` then up half `u`; the others read one.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `silu(g) * u` (Shazeer, "GLU Variants Improve Transformer", 2020)
    SwiGlu,
    /// `gelu(g) * u` with the exact error function (the same paper)
    GeGlu,
    /// `gelu(g) * u` with the tanh approximation of gelu
    GeGluTanh,
    /// gpt-oss: `g' = min(g, limit)`, `u' = clamp(u, -limit, limit)`, `g' * sigmoid(alpha * g') * (u' + 1)`
    ClampedSwiGlu {
        /// slope inside the sigmoid (gpt-oss: 1.702)
        alpha: f32,
        /// bound of both halves (gpt-oss: 7)
        limit: f32,
    },
    /// `gelu(g)` with the exact error function, ungated
    Gelu,
    /// `gelu(g)` with the tanh approximation, ungated
    GeluTanh,
    /// `max(g, 0)^2`, ungated (So et al., "Primer", 2021)
    SquaredRelu,
    /// `g`, ungated: the plain product, for activations that a caller computes
    Linear,
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const TANH_CUBIC: f64 = 0.044_715;

impl Activation {
    /// Whether it reads two halves.
    pub const fn gated(self) -> bool {
        matches!(self, Self::SwiGlu | Self::GeGlu | Self::GeGluTanh | Self::ClampedSwiGlu { .. })
    }

    /// Width of the up-projection for experts of hidden width `hidden`.
    pub const fn up_width(self, hidden: usize) -> usize {
        if self.gated() { 2 * hidden } else { hidden }
    }

    /// The activation of one element. `u` is ignored by ungated functions.
    pub fn apply<A: Accum>(self, g: A, u: A) -> A {
        match self {
            Self::SwiGlu => g * g.fixed_sigmoid() * u,
            Self::GeGlu => gelu(g).0 * u,
            Self::GeGluTanh => gelu_tanh(g).0 * u,
            Self::ClampedSwiGlu { alpha, limit } => {
                let (alpha, limit) = (A::of(alpha.into()), A::of(limit.into()));
                let (g, u) = (least(g, limit), most(least(u, limit), -limit));
                g * (alpha * g).fixed_sigmoid() * (u + A::ONE)
            }
            Self::Gelu => gelu(g).0,
            Self::GeluTanh => gelu_tanh(g).0,
            Self::SquaredRelu => {
                let positive = most(g, A::ZERO);
                positive * positive
            }
            Self::Linear => g,
        }
    }

    /// Gradients at `g` and `u` for the gradient `da` at the activation. Ungated functions give 0 for `u`.
    /// A clamped half has no gradient beyond its bound; on the bound it has.
    pub fn gradient<A: Accum>(self, g: A, u: A, da: A) -> (A, A) {
        let gate = |value: A, slope: A| (da * u * slope, da * value);
        match self {
            Self::SwiGlu => {
                let s = g.fixed_sigmoid();
                gate(g * s, s * (A::ONE + g * (A::ONE - s)))
            }
            Self::GeGlu => {
                let (value, slope) = gelu(g);
                gate(value, slope)
            }
            Self::GeGluTanh => {
                let (value, slope) = gelu_tanh(g);
                gate(value, slope)
            }
            Self::ClampedSwiGlu { alpha, limit } => {
                let (alpha, limit) = (A::of(alpha.into()), A::of(limit.into()));
                let (gc, uc) = (least(g, limit), most(least(u, limit), -limit));
                let s = (alpha * gc).fixed_sigmoid();
                let slope = s * (A::ONE + alpha * gc * (A::ONE - s));
                let dg = if g > limit { A::ZERO } else { da * (uc + A::ONE) * slope };
                let du = if u > limit || u < -limit { A::ZERO } else { da * gc * s };
                (dg, du)
            }
            Self::Gelu => (da * gelu(g).1, A::ZERO),
            Self::GeluTanh => (da * gelu_tanh(g).1, A::ZERO),
            Self::SquaredRelu => (da * A::of(2.0) * most(g, A::ZERO), A::ZERO),
            Self::Linear => (da, A::ZERO),
        }
    }
}

/// The smaller; NaN stays NaN.
fn least<A: Accum>(value: A, bound: A) -> A {
    if value > bound { bound } else { value }
}

/// The larger; NaN stays NaN.
fn most<A: Accum>(value: A, bound: A) -> A {
    if value < bound { bound } else { value }
}

fn gelu<A: Accum>(x: A) -> (A, A) {
    let half = A::of(0.5);
    let cdf = half * (A::ONE + (x * A::of(core::f64::consts::FRAC_1_SQRT_2)).fixed_erf());
    let density = A::of(0.398_942_280_401_432_7) * (-half * x * x).fixed_exp();
    (x * cdf, cdf + x * density)
}

fn gelu_tanh<A: Accum>(x: A) -> (A, A) {
    let (half, root, cubic) = (A::of(0.5), A::of(SQRT_2_OVER_PI), A::of(TANH_CUBIC));
    let t = (root * (x + cubic * x * x * x)).fixed_tanh();
    let inner = root * (A::ONE + A::of(3.0) * cubic * x * x);
    (half * x * (A::ONE + t), half * (A::ONE + t) + half * x * (A::ONE - t * t) * inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Activation; 8] = [
        Activation::SwiGlu,
        Activation::GeGlu,
        Activation::GeGluTanh,
        Activation::ClampedSwiGlu { alpha: 1.702, limit: 1.5 },
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::SquaredRelu,
        Activation::Linear,
    ];

    #[test]
    fn every_gradient_is_the_slope_of_its_function() {
        for act in ALL {
            for g in [-2.3, -0.4, 0.01, 0.9, 1.7] {
                for u in [-1.9, -0.6, 0.3, 2.2] {
                    let step = 1e-6;
                    let at = |g: f64, u: f64| act.apply(g, u);
                    let (dg, du) = act.gradient(g, u, 1.0);
                    let by_g = (at(g + step, u) - at(g - step, u)) / (2.0 * step);
                    let by_u = (at(g, u + step) - at(g, u - step)) / (2.0 * step);
                    assert!((dg - by_g).abs() < 1e-8, "{act:?} g={g} u={u}: {dg} {by_g}");
                    assert!((du - by_u).abs() < 1e-8, "{act:?} g={g} u={u}: {du} {by_u}");
                }
            }
        }
    }

    #[test]
    fn gated_functions_are_twice_as_wide() {
        assert_eq!(Activation::SwiGlu.up_width(3), 6);
        assert_eq!(Activation::SquaredRelu.up_width(3), 3);
    }
}
