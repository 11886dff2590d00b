//! Every kernel against the reference, on every vector unit of this processor and on one to three threads.

mod adamw;
mod combine;
mod gate_bwd;
mod gather;
mod measured;
mod merge;
mod misuse;
mod route;
mod route_bwd;
mod route_stats;
mod small;
mod sort;

use moe_core::{Accum, Scalar};
use moe_cpu::{Cpu, Isa};

/// All units with one to three threads.
fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().flat_map(|isa| (1..=3).map(move |threads| Cpu::with_isa(threads, isa).unwrap()))
}

/// Values in -1..1 that are no simple fractions, from a fixed linear congruence.
fn values<T: Scalar>(len: usize, seed: u64) -> Vec<T> {
    words(len, seed)
        .into_iter()
        .map(|word| T::narrow(T::Acc::of(f64::from(word) / 2_147_483_648.0 - 1.0)))
        .collect()
}

/// Integers below `bound`.
fn below(bound: usize, len: usize, seed: u64) -> Vec<u32> {
    words(len, seed).into_iter().map(|word| ((u64::from(word) * bound as u64) >> 32) as u32).collect()
}

fn words(len: usize, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..len + 4).map(|_| next()).skip(4).collect()
}

/// The bits of values; all NaN are one.
fn bits<T: Scalar<Acc = f32>>(values: &[T]) -> Vec<u32> {
    values
        .iter()
        .map(|value| value.widen())
        .map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() })
        .collect()
}

/// Values agree within `tolerance` of the largest.
#[track_caller]
fn assert_close<T: Scalar<Acc = f32>>(got: &[T], want: &[T], tolerance: f32, what: &str) {
    let largest = want.iter().map(|want| want.widen().abs()).fold(0.0, f32::max);
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let (got, want) = (got.widen(), want.widen());
        let close = (got - want).abs() <= tolerance * largest || got.is_nan() && want.is_nan() || got == want;
        assert!(close, "{what}[{at}] is {got}, wanted {want}");
    }
}

/// Runs an op on any host device, with scratch memory of exactly the size asked for, filled with NaN and badly aligned.
macro_rules! launch {
    ($device:expr, $op:ty, $dims:expr, $args:expr) => {{
        let (device, dims) = ($device, $dims);
        let mut scratch = vec![0xff_u8; moe_core::Kernel::<$op>::scratch(device, &dims) + 1];
        moe_core::run::<$op, _>(device, &(), &dims, $args, moe_core::ViewMut::of(&mut scratch[1..]))
    }};
}
use launch;
