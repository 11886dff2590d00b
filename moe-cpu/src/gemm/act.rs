//! Activations and their gradients, a vector at a time, on sums in scratch memory.
//!
//! The formulas are those of [`Activation`]. The exponential has the bits of
//! [`fixed_exp`](moe_core::Accum::fixed_exp) on units with fused products; erf and tanh are rational functions that
//! differ from the reference by a few units in the last place.

use super::formula::{ClampedSwiGlu, Formula, GeGlu, GeGluTanh, Gelu, GeluTanh, Linear, SquaredRelu, SwiGlu};
use super::isa::{Job, Unit};
use super::simd::Simd;
use moe_core::ops::Activation;

/// Most lanes of any unit.
const LANES: usize = 16;

/// A slice's last elements, padded with zeros to whole vectors.
#[inline(always)]
fn end(slice: &[f32], whole: usize) -> [f32; LANES] {
    let mut end = [0.0; LANES];
    end[..slice.len() - whole].copy_from_slice(&slice[whole..]);
    end
}

struct Apply<'a, F> {
    formula: F,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl<F: Formula> Apply<'_, F> {
    /// For whole vectors.
    #[inline(always)]
    fn vectors<S: Simd>(s: S, formula: F, gate: &mut [f32], up: &[f32]) {
        assert!(!F::GATED || up.len() == gate.len(), "halves of unequal length");
        for at in (0..gate.len() - gate.len() % S::LANES).step_by(S::LANES) {
            // SAFETY: `at + LANES` is at most the slices' length.
            unsafe {
                let g = s.load(gate.as_ptr().add(at));
                let u = if F::GATED { s.load(up.as_ptr().add(at)) } else { g };
                s.store(formula.value(s, g, u), gate.as_mut_ptr().add(at));
            }
        }
    }
}

impl<F: Formula> Job for Apply<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { formula, gate, up } = self;
        Self::vectors(s, formula, gate, up);
        let whole = gate.len() - gate.len() % S::LANES;
        if whole < gate.len() {
            let mut gate_end = end(gate, whole);
            let up_end = if F::GATED { end(up, whole) } else { gate_end };
            Self::vectors(s, formula, &mut gate_end, &up_end);
            let len = gate.len() - whole;
            gate[whole..].copy_from_slice(&gate_end[..len]);
        }
    }
}

struct Gradient<'a, F> {
    formula: F,
    gate: &'a mut [f32],
    up: &'a mut [f32],
    outer: &'a mut [f32],
}

impl<F: Formula> Gradient<'_, F> {
    /// For whole vectors.
    #[inline(always)]
    fn vectors<S: Simd>(s: S, formula: F, gate: &mut [f32], up: &mut [f32], outer: &mut [f32]) {
        assert!(
            outer.len() == gate.len() && (!F::GATED || up.len() == gate.len()),
            "slices of unequal length"
        );
        for at in (0..gate.len() - gate.len() % S::LANES).step_by(S::LANES) {
            // SAFETY: `at + LANES` is at most the slices' length.
            unsafe {
                let g = s.load(gate.as_ptr().add(at));
                let u = if F::GATED { s.load(up.as_ptr().add(at)) } else { g };
                let [dg, du, value] = formula.gradient(s, g, u, s.load(outer.as_ptr().add(at)));
                s.store(dg, gate.as_mut_ptr().add(at));
                if F::GATED {
                    s.store(du, up.as_mut_ptr().add(at));
                }
                s.store(value, outer.as_mut_ptr().add(at));
            }
        }
    }
}

impl<F: Formula> Job for Gradient<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { formula, gate, up, outer } = self;
        Self::vectors(s, formula, gate, up, outer);
        let whole = gate.len() - gate.len() % S::LANES;
        if whole < gate.len() {
            let (len, mut gate_end, mut outer_end) =
                (gate.len() - whole, end(gate, whole), end(outer, whole));
            let mut up_end = if F::GATED { end(up, whole) } else { gate_end };
            Self::vectors(s, formula, &mut gate_end, &mut up_end, &mut outer_end);
            gate[whole..].copy_from_slice(&gate_end[..len]);
            outer[whole..].copy_from_slice(&outer_end[..len]);
            if F::GATED {
                up[whole..].copy_from_slice(&up_end[..len]);
            }
        }
    }
}

/// Calls `$call!(formula)` with the formula of an activation.
macro_rules! by_formula {
    ($activation:expr, $call:ident) => {
        match $activation {
            Activation::SwiGlu => $call!(SwiGlu),
            Activation::GeGlu => $call!(GeGlu),
            Activation::GeGluTanh => $call!(GeGluTanh),
            Activation::ClampedSwiGlu { alpha, limit } => $call!(ClampedSwiGlu { alpha, limit }),
            Activation::Gelu => $call!(Gelu),
            Activation::GeluTanh => $call!(GeluTanh),
            Activation::SquaredRelu => $call!(SquaredRelu),
            _ => $call!(Linear),
        }
    };
}

/// `gate = activation(gate, up)`. `up` is not read by ungated functions.
pub(crate) fn apply(unit: Unit, activation: Activation, gate: &mut [f32], up: &[f32]) {
    macro_rules! run {
        ($formula:expr) => {
            unit.run(Apply { formula: $formula, gate, up })
        };
    }
    by_formula!(activation, run);
}

/// The gradients at `gate` and `up` in their place, for the gradient `outer` at the activation, and the activation's value in
/// the place of `outer`. `up` is neither read nor written by ungated functions.
pub(crate) fn gradient(
    unit: Unit,
    activation: Activation,
    gate: &mut [f32],
    up: &mut [f32],
    outer: &mut [f32],
) {
    macro_rules! run {
        ($formula:expr) => {
            unit.run(Gradient { formula: $formula, gate, up, outer })
        };
    }
    by_formula!(activation, run);
}
