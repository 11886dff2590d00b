//! Products against a plain f64 product, on every unit of this processor.

use super::act::{apply, gradient};
use super::fill::pack;
use super::float::Float;
use super::isa::{Isa, Unit};
use super::left::Rows;
use super::panel::{Order, Size, Weights};
use super::product::{Product, Space};
use super::scratch::{SLACK, Scratch};
use half::{bf16, f16};
use moe_core::Scalar;

/// Small values that are no simple fractions, from a fixed linear congruence.
pub(crate) fn values<T: Scalar<Acc = f32>>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::narrow((state >> 40) as f32 / 8_388_608.0 - 1.0)
    };
    core::iter::repeat_with(next).take(len).collect()
}

pub(crate) fn units() -> impl Iterator<Item = Unit> {
    Isa::available().filter_map(Unit::new)
}

/// Packs every group.
fn packed<T: Float>(unit: Unit, plain: &[T], groups: usize, order: Order, size: Size) -> Vec<T> {
    let mut all = vec![T::default(); groups * size.packed::<T>(unit) + T::BEHIND];
    for (group, place) in all.chunks_exact_mut(size.packed::<T>(unit).max(1)).enumerate() {
        let matrix = &plain[group * size.n * size.k..][..size.n * size.k];
        for (panel, place) in place.chunks_exact_mut(size.panel::<T>(unit).max(1)).enumerate() {
            let columns = panel * unit.cols()..size.n.min((panel + 1) * unit.cols());
            pack(unit, matrix, order, size, columns, 0..size.k, place);
        }
    }
    all
}

fn multiply<T: Float>(
    product: Product<'_, T>,
    rows: core::ops::Range<usize>,
    parts: [core::ops::Range<usize>; 2],
) -> Vec<f32> {
    let mut memory = vec![0xff; Space::<T>::bytes(product.unit) + SLACK];
    let mut space = Space::new(product.unit, &mut Scratch::new(&mut memory));
    product.run(1, rows.clone(), parts, &mut space);
    (0..rows.len()).flat_map(|row| space.row(row).map(|part| part.to_vec()).concat()).collect()
}

fn check<T: Float>(m: usize, size: Size) {
    let Size { n, k } = size;
    let (left, right) = (values::<T>(m * k, 1), values::<T>(2 * n * k, 2));
    for order in [Order::ByColumn, Order::ByDepth] {
        for unit in units() {
            let panels = packed(unit, &right, 2, order, size);
            let run = |weights, rows, parts| {
                multiply(Product { unit, left: Rows::plain(&left, k), weights, size }, rows, parts)
            };
            let got = run(Weights::Packed(&panels), 0..m, [0..n, 0..0]);
            for row in 0..m {
                for column in 0..n {
                    let at = |k_: usize| match order {
                        Order::ByColumn => (n + column) * k + k_,
                        Order::ByDepth => (k + k_) * n + column,
                    };
                    let terms = (0..k)
                        .map(|i| f64::from(left[row * k + i].widen()) * f64::from(right[at(i)].widen()));
                    let (want, size) =
                        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let got = f64::from(got[row * n + column]);
                    assert!(
                        (got - want).abs() <= 1e-6 * size,
                        "{unit:?} {m} {n} {k} ({row}, {column}): {got}, wanted {want}"
                    );
                }
            }
            let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&run(Weights::Plain(&right, order), 0..m, [0..n, 0..0])), bits(&got));
            for row in 0..m {
                let alone = run(Weights::Packed(&panels), row..row + 1, [0..n / 3, n / 3..n]);
                assert_eq!(bits(&alone), bits(&got[row * n..][..n]), "{unit:?}: a row alone has other bits");
            }
        }
    }
}

fn check_all<T: Float>() {
    for (m, n, k) in [
        (1, 1, 1),
        (3, 5, 0),
        (7, 33, 1),
        (5, 16, 3),
        (13, 64, 256),
        (25, 70, 257),
        (2, 31, 515),
        (144, 40, 19),
    ] {
        check::<T>(m, Size { n, k });
    }
}

#[test]
fn f32_products_are_right_and_rows_are_independent() {
    check_all::<f32>();
}

#[test]
fn bf16_products_are_right_and_rows_are_independent() {
    check_all::<bf16>();
}

#[test]
fn f16_products_are_right_and_rows_are_independent() {
    check_all::<f16>();
}

/// Gates over the whole range that matters, an odd number of them, and ups of both signs.
fn halves() -> (Vec<f32>, Vec<f32>) {
    let gates = (-2001..2000).map(|at| at as f32 * 0.006);
    let gates = gates.chain([-85.0, -120.0, 88.0, 100.0, 0.0, -0.0, 1e-30, 1e4]);
    gates.enumerate().map(|(at, gate)| (gate, (at % 7) as f32 * 0.6 - 1.9)).unzip()
}

#[test]
fn activations_and_gradients_are_those_of_the_definition() {
    use moe_core::ops::Activation::*;
    let (gate, up) = halves();
    let clamped = ClampedSwiGlu { alpha: 1.702, limit: 1.5 };
    let (da, outer) = (0.7_f64, vec![0.7_f32; gate.len()]);
    for (unit, activation) in units().flat_map(|unit| {
        [SwiGlu, clamped, GeGlu, GeGluTanh, Gelu, GeluTanh, SquaredRelu, Linear]
            .map(|activation| (unit, activation))
    }) {
        let mut alone = gate.clone();
        apply(unit, activation, &mut alone, &up);
        let (mut dg, mut du, mut value) = (gate.clone(), up.clone(), outer.clone());
        gradient(unit, activation, &mut dg, &mut du, &mut value);
        for (at, (g, u)) in gate.iter().zip(&up).map(|(g, u)| (f64::from(*g), f64::from(*u))).enumerate() {
            let close = |what: &str, got: f32, want: f64, size: f64| {
                let near = (f64::from(got) - want).abs() <= 2e-6 * want.abs().max(size) + 1e-37;
                assert!(
                    near || got == want as f32,
                    "{unit:?} {activation:?}({g}, {u}): {what} {got}, wanted {want}"
                );
            };
            // Where 1 + erf or 1 + tanh is nearly 0 its error is that of the 1.
            let relative = matches!(activation, SwiGlu | ClampedSwiGlu { .. });
            let size = if relative { 0.0 } else { 0.1 * g.abs().min(9.0) * u.abs().max(1.0) };
            let want = activation.apply(g, u);
            close("value", alone[at], want, size);
            assert_eq!(value[at].to_bits(), alone[at].to_bits(), "{unit:?} {activation:?}({g}, {u})");
            let (want_g, want_u) = activation.gradient(g, u, f64::from(outer[at]));
            // Slopes are sums of terms near 1, and of such terms times g.
            close("dg", dg[at], want_g, da * u.abs().max(1.0) * (1.0 + g.abs().min(9.0)));
            if activation.gated() {
                close("du", du[at], want_u, size);
            }
        }
    }
}
