//! Arithmetic with the reference's bits.
//!
//! Plain Rust, inlined into jobs that are compiled for a vector unit: `mul_add` is one instruction where the unit has it
//! and a correctly rounded call elsewhere, and the compiler contracts nothing of its own accord.

use crate::gemm::{Portable, Simd};
use moe_core::exp::{LN2_HIGH, LN2_LOW, LOG2_E, MAX, MIN, SHIFT, TERMS};
use std::any::TypeId;

/// Most lanes of any unit.
pub(crate) const LANES: usize = 16;

/// `a * b + c`, rounded once on every unit.
#[inline(always)]
pub(crate) fn fused<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
    if TypeId::of::<S>() != TypeId::of::<Portable>() {
        return s.fma(a, b, c);
    }
    let mut lanes = [[0.0_f32; LANES]; 3];
    for (lanes, value) in lanes.iter_mut().zip([a, b, c]) {
        // SAFETY: no unit has more than `LANES` lanes.
        unsafe { s.store(value, lanes.as_mut_ptr()) };
    }
    let [a, b, mut c] = lanes;
    for lane in 0..S::LANES {
        c[lane] = a[lane].mul_add(b[lane], c[lane]);
    }
    // SAFETY: as above.
    unsafe { s.load(c.as_ptr()) }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x with the bits of [`fixed_exp`](moe_core::Accum::fixed_exp), free of branches.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // The integer nearest to x * log2(e) stands in the low bits of this sum.
    let shifted = x.mul_add(LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut sum = TERMS[0];
    for term in &TERMS[1..] {
        sum = sum.mul_add(r, *term);
    }
    let n = shifted.to_bits().wrapping_sub(SHIFT.to_bits()) as i32;
    let half = n >> 1;
    let power = sum * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    let power = if x > MAX { f32::INFINITY } else { power };
    let power = if x < MIN { 0.0 } else { power };
    if x.is_nan() { x } else { power }
}

/// 1 / (1 + e^-x) with the bits of [`fixed_sigmoid`](moe_core::Accum::fixed_sigmoid).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    let e = exp(if x < 0.0 { x } else { -x });
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Isa, Job, Unit};
    use moe_core::Accum;

    /// e^x and the sigmoid of every value, in place of the value.
    struct Both<'a>(&'a mut [[f32; 2]]);

    impl Job for Both<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            for [x, y] in self.0 {
                (*x, *y) = (exp(*x), sigmoid(*x));
            }
        }
    }

    #[test]
    fn exp_and_sigmoid_have_the_bits_of_the_reference() {
        let limits = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, MAX, MIN, f32::MAX, f32::MIN];
        let patterns = (0..1 << 16).map(|i| f32::from_bits(i * 0x0001_0001));
        let inputs: Vec<f32> =
            limits.into_iter().chain(patterns).chain((0..20_000).map(|i| i as f32 * 0.01 - 105.0)).collect();
        for unit in Isa::available().filter_map(Unit::new) {
            let mut values: Vec<[f32; 2]> = inputs.iter().map(|x| [*x; 2]).collect();
            unit.run(Both(&mut values));
            for (x, [power, sigmoid]) in inputs.iter().zip(values) {
                assert!(
                    power.to_bits() == x.fixed_exp().to_bits() || x.is_nan() && power.is_nan(),
                    "exp({x})"
                );
                assert!(
                    sigmoid.to_bits() == x.fixed_sigmoid().to_bits() || x.is_nan() && sigmoid.is_nan(),
                    "sigmoid({x})"
                );
            }
        }
    }
}
