//! What every vector unit of this processor promises, one operation after the other.

use super::isa::Job;
use super::simd::{SQUARE, Simd};
use super::tests::units;
use crate::exact::LANES;
use half::{bf16, f16};

fn on_all_units(check: impl Job<Output = ()> + Copy) {
    for unit in units() {
        println!("{unit:?}");
        unit.run(check);
    }
}

#[derive(Clone, Copy)]
struct Arithmetic;

impl Job for Arithmetic {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, b, c) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON, -1.0);
        let (x, y, z) = (s.splat(a), s.splat(b), s.splat(c));
        let fused = if S::FUSED { a.mul_add(b, c) } else { a * b + c };
        for (got, want) in [
            (s.add(x, y), a + b),
            (s.sub(x, y), a - b),
            (s.mul(x, y), a * b),
            (s.div(x, y), a / b),
            (s.fma(x, y, z), fused),
        ] {
            let mut lanes = [0.0; LANES];
            // SAFETY: no unit has more than `LANES` lanes.
            unsafe { s.store(got, lanes.as_mut_ptr()) };
            assert_eq!(lanes[..S::LANES], [want; LANES][..S::LANES]);
        }
    }
}

#[test]
fn arithmetic_is_that_of_f32_and_fused_where_the_unit_says_so() {
    on_all_units(Arithmetic);
}

#[derive(Clone, Copy)]
struct Narrow;

impl Job for Narrow {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Every exponent and sign, ties and their neighbours in both 16-bit types, infinities and NaN.
        let low = [0, 1, 0xfff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x7f_ffff];
        let values: Vec<f32> =
            (0..512_u32).flat_map(|high| low.map(|low| f32::from_bits(high << 23 | low))).collect();
        for values in values.chunks_exact(S::LANES) {
            let (mut brain, mut half) = ([bf16::ZERO; LANES], [f16::ZERO; LANES]);
            // SAFETY: no unit has more than `LANES` lanes.
            unsafe {
                s.store_bf16(s.load(values.as_ptr()), brain.as_mut_ptr());
                s.store_f16(s.load(values.as_ptr()), half.as_mut_ptr());
            }
            for (value, (brain, half)) in values.iter().zip(brain.into_iter().zip(half)) {
                if value.is_nan() {
                    assert!(brain.is_nan() && half.is_nan(), "{value}: {brain}, {half}");
                } else {
                    assert_eq!(brain.to_bits(), bf16::from_f32(*value).to_bits(), "{value}");
                    assert_eq!(half.to_bits(), f16::from_f32(*value).to_bits(), "{value}");
                }
            }
        }
    }
}

#[test]
fn narrowing_rounds_to_nearest_even_and_keeps_nan() {
    on_all_units(Narrow);
}

#[derive(Clone, Copy)]
struct Widen;

impl Job for Widen {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let same = |got: f32, want: f32| got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        for first in (0..=u16::MAX).step_by(S::LANES) {
            let bits: [u16; 2 * LANES + 1] = core::array::from_fn(|lane| first.wrapping_add(lane as u16));
            let (brain, half) = (bits.map(bf16::from_bits), bits.map(f16::from_bits));
            let mut got = [[0.0_f32; LANES]; 4];
            // SAFETY: no unit has more than `LANES` lanes, and an element follows their pairs.
            unsafe {
                s.store(s.load_bf16(brain.as_ptr()), got[0].as_mut_ptr());
                s.store(s.load_f16(half.as_ptr()), got[1].as_mut_ptr());
                s.store(s.load_even(brain.as_ptr()), got[2].as_mut_ptr());
                s.store(s.load_odd(brain.as_ptr()), got[3].as_mut_ptr());
            }
            for lane in 0..S::LANES {
                assert!(same(got[0][lane], brain[lane].to_f32()), "{first} {lane}");
                assert!(same(got[1][lane], half[lane].to_f32()), "{first} {lane}");
                assert!(same(got[2][lane], brain[2 * lane].to_f32()), "{first} {lane}");
                assert!(same(got[3][lane], brain[2 * lane + 1].to_f32()), "{first} {lane}");
            }
        }
    }
}

#[test]
fn widening_is_exact() {
    on_all_units(Widen);
}

#[derive(Clone, Copy)]
struct Compare;

impl Job for Compare {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let values = [f32::NAN, f32::NEG_INFINITY, -1.5, -0.0, 0.0, f32::from_bits(1), 2.0, f32::INFINITY];
        for (a, b) in values.iter().flat_map(|a| values.map(|b| (*a, b))) {
            let mut got = [[0.0_f32; LANES]; 3];
            let (x, y) = (s.splat(a), s.splat(b));
            // SAFETY: no unit has more than `LANES` lanes.
            unsafe {
                s.store(s.min(x, y), got[0].as_mut_ptr());
                s.store(s.max(x, y), got[1].as_mut_ptr());
                s.store(s.select_lt(x, y, s.splat(3.0), s.splat(4.0)), got[2].as_mut_ptr());
            }
            let want = [if a < b { a } else { b }, if a > b { a } else { b }, if a < b { 3.0 } else { 4.0 }];
            for lane in 0..S::LANES {
                let got = got.map(|got| got[lane].to_bits());
                assert_eq!(got, want.map(f32::to_bits), "{a}, {b}");
            }
        }
    }
}

#[test]
fn comparisons_give_the_last_argument_for_nan() {
    on_all_units(Compare);
}

#[derive(Clone, Copy)]
struct Scale;

impl Job for Scale {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for n in -252..=254 {
            let mut got = [0.0; LANES];
            // SAFETY: no unit has more than `LANES` lanes.
            unsafe { s.store(s.scale(s.splat(1.337), s.splat(n as f32)), got.as_mut_ptr()) };
            let want = (f64::from(1.337_f32) * 2.0_f64.powi(n)) as f32;
            assert!(got[..S::LANES].iter().all(|got| *got == want), "2^{n}");
        }
    }
}

#[test]
fn scaling_rounds_once() {
    on_all_units(Scale);
}

#[derive(Clone, Copy)]
struct Turn;

impl Job for Turn {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from_pitch, to_pitch) = (SQUARE + 3, SQUARE + 1);
        let from: Vec<u32> = (0..SQUARE * from_pitch).map(|at| at as u32).collect();
        let mut to = vec![u32::MAX; SQUARE * to_pitch];
        // SAFETY: both hold `SQUARE` rows of their pitch.
        unsafe { s.turn(from.as_ptr().cast(), from_pitch * 4, to.as_mut_ptr().cast(), to_pitch * 4) };
        for (at, got) in to.iter().enumerate() {
            let (column, row) = (at / to_pitch, at % to_pitch);
            let want = if row < SQUARE { from[row * from_pitch + column] } else { u32::MAX };
            assert_eq!(*got, want, "({row}, {column})");
        }
    }
}

#[test]
fn a_turned_square_has_its_rows_as_columns() {
    on_all_units(Turn);
}

#[derive(Clone, Copy)]
struct Ask;

impl Job for Ask {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in [0, 1, usize::MAX].map(core::ptr::without_provenance) {
            s.near(at);
            s.prefetch(at);
        }
    }
}

#[test]
fn any_address_can_be_asked_for() {
    on_all_units(Ask);
}

#[cfg(target_arch = "aarch64")]
#[test]
fn aarch64_has_neon() {
    assert_eq!(super::Isa::best(), super::Isa::Neon);
}
