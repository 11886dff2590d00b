//! The formulas of the activations on vectors, one type each: see [`Activation`](moe_core::ops::Activation).

use super::math::{Half, gelu, gelu_tanh, sigmoid};
use super::simd::Simd;

/// An activation on vectors.
pub(crate) trait Formula: Copy {
    /// Whether it reads two halves.
    const GATED: bool;
    /// The activation of gate `g` and up `u`.
    fn value<S: Simd>(self, s: S, g: S::V, u: S::V) -> S::V;
    /// The gradients at `g` and `u` for the gradient `da`, and the value.
    fn gradient<S: Simd>(self, s: S, g: S::V, u: S::V, da: S::V) -> [S::V; 3];
}

/// Formulas of the forms `f(g) * u` and `f(g)`, by a function that gives f with its derivative.
macro_rules! formulas {
    ($($gated:ident, $plain:ident: |$s:ident, $g:ident| $half:expr;)*) => { $(
        #[derive(Clone, Copy)]
        pub(crate) struct $gated;

        impl Formula for $gated {
            const GATED: bool = true;
            #[inline(always)]
            fn value<S: Simd>(self, $s: S, $g: S::V, u: S::V) -> S::V {
                $s.mul($half.value, u)
            }
            #[inline(always)]
            fn gradient<S: Simd>(self, $s: S, $g: S::V, u: S::V, da: S::V) -> [S::V; 3] {
                let Half { value, slope } = $half;
                [$s.mul($s.mul(da, u), slope), $s.mul(da, value), $s.mul(value, u)]
            }
        }

        #[derive(Clone, Copy)]
        pub(crate) struct $plain;

        impl Formula for $plain {
            const GATED: bool = false;
            #[inline(always)]
            fn value<S: Simd>(self, $s: S, $g: S::V, _: S::V) -> S::V {
                $half.value
            }
            #[inline(always)]
            fn gradient<S: Simd>(self, $s: S, $g: S::V, u: S::V, da: S::V) -> [S::V; 3] {
                let Half { value, slope } = $half;
                [$s.mul(da, slope), u, value]
            }
        }
    )* };
}

formulas! {
    GeGlu, Gelu: |s, g| gelu(s, g);
    GeGluTanh, GeluTanh: |s, g| gelu_tanh(s, g);
}

/// `silu(g) * u`
#[derive(Clone, Copy)]
pub(crate) struct SwiGlu;

impl Formula for SwiGlu {
    const GATED: bool = true;
    #[inline(always)]
    fn value<S: Simd>(self, s: S, g: S::V, u: S::V) -> S::V {
        s.mul(s.mul(g, sigmoid(s, g)), u)
    }
    #[inline(always)]
    fn gradient<S: Simd>(self, s: S, g: S::V, u: S::V, da: S::V) -> [S::V; 3] {
        let (one, gate) = (s.splat(1.0), sigmoid(s, g));
        let slope = s.mul(gate, s.add(one, s.mul(g, s.sub(one, gate))));
        let value = s.mul(g, gate);
        [s.mul(s.mul(da, u), slope), s.mul(da, value), s.mul(value, u)]
    }
}

/// The clamped form of gpt-oss.
#[derive(Clone, Copy)]
pub(crate) struct ClampedSwiGlu {
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
}

impl ClampedSwiGlu {
    #[inline(always)]
    fn clamp<S: Simd>(self, s: S, g: S::V, u: S::V) -> (S::V, S::V) {
        let limit = s.splat(self.limit);
        (s.min(limit, g), s.max(s.splat(-self.limit), s.min(limit, u)))
    }
}

impl Formula for ClampedSwiGlu {
    const GATED: bool = true;
    #[inline(always)]
    fn value<S: Simd>(self, s: S, g: S::V, u: S::V) -> S::V {
        let (g, u) = self.clamp(s, g, u);
        s.mul(s.mul(g, sigmoid(s, s.mul(s.splat(self.alpha), g))), s.add(u, s.splat(1.0)))
    }
    #[inline(always)]
    fn gradient<S: Simd>(self, s: S, g: S::V, u: S::V, da: S::V) -> [S::V; 3] {
        let (zero, one, limit) = (s.splat(0.0), s.splat(1.0), s.splat(self.limit));
        let (gc, uc) = self.clamp(s, g, u);
        let scaled = s.mul(s.splat(self.alpha), gc);
        let gate = sigmoid(s, scaled);
        let slope = s.mul(gate, s.add(one, s.mul(scaled, s.sub(one, gate))));
        let (value, up) = (s.mul(gc, gate), s.add(uc, one));
        let dg = s.select_lt(limit, g, zero, s.mul(s.mul(da, up), slope));
        let du = s.select_lt(u, s.splat(-self.limit), zero, s.mul(da, value));
        [dg, s.select_lt(limit, u, zero, du), s.mul(value, up)]
    }
}

/// `max(g, 0)^2`
#[derive(Clone, Copy)]
pub(crate) struct SquaredRelu;

impl Formula for SquaredRelu {
    const GATED: bool = false;
    #[inline(always)]
    fn value<S: Simd>(self, s: S, g: S::V, _: S::V) -> S::V {
        let positive = s.max(s.splat(0.0), g);
        s.mul(positive, positive)
    }
    #[inline(always)]
    fn gradient<S: Simd>(self, s: S, g: S::V, u: S::V, da: S::V) -> [S::V; 3] {
        let positive = s.max(s.splat(0.0), g);
        [s.mul(da, s.add(positive, positive)), u, s.mul(positive, positive)]
    }
}

/// `g`
#[derive(Clone, Copy)]
pub(crate) struct Linear;

impl Formula for Linear {
    const GATED: bool = false;
    #[inline(always)]
    fn value<S: Simd>(self, _: S, g: S::V, _: S::V) -> S::V {
        g
    }
    #[inline(always)]
    fn gradient<S: Simd>(self, _: S, g: S::V, u: S::V, da: S::V) -> [S::V; 3] {
        [da, u, g]
    }
}
