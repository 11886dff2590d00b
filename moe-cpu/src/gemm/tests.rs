//! Products against a plain f64 product, on every unit of this processor.

use super::act::{apply, gradient};
use super::fill::pack;
use super::float::Float;
use super::isa::{Isa, Unit};
use super::left::Rows;
use super::outer::{Outer, OuterSpace};
use super::panel::{Order, Size, Weights};
use super::product::{Product, Space};
use super::rows::dot;
use super::scratch::{SLACK, Scratch};
use super::shared::Shared;
use super::swiglu;
use super::tile::Leave;
use half::{bf16, f16};
use moe_core::Scalar;
use moe_core::ops::Activation;

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
    Isa::available().filter_map(Unit::new).chain([Unit::pairs(), Unit::tiles()])
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
        (33, 40, 45),
        (17, 9, 302),
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

/// The gradient of one group, `left^T * right` over `rows`, in a rectangle inside of a larger matrix that holds ones. Rows of the
/// matrix start on cache lines, but for `astray`.
fn gradient_of<T: Float>(
    outer: Outer<'_, T>,
    rows: core::ops::Range<usize>,
    [m, n]: [usize; 2],
    leave: Leave,
    astray: bool,
) -> Vec<f32> {
    let pitch = n + 16 - n % 16 + usize::from(astray);
    let mut memory = vec![0xff; OuterSpace::bytes() + SLACK];
    let mut space = OuterSpace::new(outer.unit, &mut Scratch::new(&mut memory));
    let mut lines = vec![[1.0_f32; 16]; (m + 1) * pitch / 16 + 5];
    let matrix = lines.as_flattened_mut();
    let start = matrix.as_ptr().align_offset(64);
    let shared = Shared::new(&mut matrix[start..]);
    // The second half finds the panels of the first.
    for part in [0..m / 2, m / 2..m] {
        // SAFETY: nothing else is in use.
        let place = unsafe { shared.rectangle(part.start * pitch, pitch, [part.len(), n]) };
        outer.run(rows.clone(), part, 0..n, (place, leave), &mut space);
    }
    let matrix = &matrix[start..];
    assert!((0..m).all(|row| matrix[row * pitch + n..(row + 1) * pitch].iter().all(|value| *value == 1.0)));
    assert!(matrix[m * pitch..].iter().all(|value| *value == 1.0), "written behind the rectangle");
    (0..m).flat_map(|row| matrix[row * pitch..][..n].to_vec()).collect()
}

fn check_gradients<T: Float>() {
    let (width, total) = (70, 600);
    let (left, right) = (values::<T>(total * width, 3), values::<T>(total * width, 4));
    for unit in units() {
        let of = |values| Rows::plain(values, width);
        let outer = Outer { unit, left: of(&left), right: of(&right), factors: None };
        for (rows, m, n) in [(5..5, 7, 33), (3..4, 1, 1), (0..31, 70, 64), (9..265, 12, 32), (1..600, 25, 70)]
        {
            let got = gradient_of(outer, rows.clone(), [m, n], Leave::Store, false);
            for (at, got) in got.iter().enumerate() {
                let at_of =
                    |values: &[T], row: usize, column: usize| f64::from(values[row * width + column].widen());
                let terms = rows.clone().map(|row| at_of(&left, row, at / n) * at_of(&right, row, at % n));
                let (want, size) =
                    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let far = (f64::from(*got) - want).abs();
                assert!(far <= 1e-6 * size, "{unit:?} {rows:?} {m} {n} [{at}]: {got}, wanted {want}");
            }
            let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
            let astray = gradient_of(outer, rows.clone(), [m, n], Leave::Store, true);
            assert_eq!(bits(&astray), bits(&got), "{unit:?}: the place changes the bits");
            let added = gradient_of(outer, rows, [m, n], Leave::Add, false);
            let ones: Vec<f32> = got.iter().map(|sum| 1.0 + sum).collect();
            assert_eq!(bits(&added), bits(&ones), "{unit:?}: added sums have other bits");
        }
    }
}

#[test]
fn gradients_are_right_however_they_leave() {
    check_gradients::<f32>();
    check_gradients::<bf16>();
    check_gradients::<f16>();
}

#[test]
fn swiglu_in_one_pass_has_the_bits_of_its_steps() {
    fn check<T: Float>() {
        let len = 96;
        let (gate, up, da) = (values::<f32>(len, 5), values::<f32>(len, 6), values::<f32>(len, 7));
        let rounded = |values: &[f32]| values.iter().map(|value| T::narrow(*value)).collect::<Vec<T>>();
        let wide = |values: &[T]| values.iter().map(|value| value.widen()).collect::<Vec<f32>>();
        let bits = |values: &[T]| values.iter().map(|value| value.widen().to_bits()).collect::<Vec<_>>();
        for unit in units() {
            let (mut h, mut a) = ([rounded(&gate), rounded(&up)], rounded(&da));
            let [first, second] = h.clone();
            let (mut steps, scores) = (wide(&first), 0.75_f32);
            apply(unit, Activation::SwiGlu, &mut steps, &wide(&second));
            for keep in [false, true] {
                a.fill(T::default());
                let mut kept = [vec![T::default(); len], vec![T::default(); len]];
                let [one, two] = &mut kept;
                let h = keep.then_some([&mut one[..], &mut two[..]]);
                swiglu::Up { sums: [&gate, &up], h, a: &mut a }.run_on(unit);
                assert_eq!(bits(&a), bits(&rounded(&steps)), "{unit:?}");
                assert!(!keep || bits(&kept[0]) == bits(&first) && bits(&kept[1]) == bits(&second));
            }
            let (mut dg, mut du) = (wide(&first), wide(&second));
            let mut value: Vec<f32> = da.iter().map(|da| scores * da).collect();
            gradient(unit, Activation::SwiGlu, &mut dg, &mut du, &mut value);
            let sums = [dot(unit, &da[..64], &value[..64]), dot(unit, &da[64..], &value[64..])];
            let mut partial = [0.0; 2];
            let [one, two] = &mut h;
            let down = swiglu::Down {
                da: &da,
                score: scores,
                h: [one, two],
                a: &mut a,
                partial: &mut partial,
                chunk: 64,
            };
            down.run_on(unit);
            let scaled: Vec<f32> = value.iter().map(|value| scores * value).collect();
            assert_eq!(bits(&a), bits(&rounded(&scaled)), "{unit:?}");
            assert_eq!((bits(&h[0]), bits(&h[1])), (bits(&rounded(&dg)), bits(&rounded(&du))), "{unit:?}");
            assert_eq!(partial.map(f32::to_bits), sums.map(f32::to_bits), "{unit:?}");
        }
    }
    check::<f32>();
    check::<bf16>();
    check::<f16>();
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
