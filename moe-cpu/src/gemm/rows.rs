//! Rows between storage type and f32, a vector at a time; the last vector is padded, so every element is treated alike.

use super::float::Float;
use super::isa::{Job, Unit};
use super::simd::{LINE, Simd};
use moe_core::DType;

/// Most lanes of any unit.
const LANES: usize = 16;

struct Near(*const u8, usize);

impl Job for Near {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        (0..self.1).step_by(LINE).for_each(|at| s.near(self.0.wrapping_add(at)));
    }
}

/// Asks for memory to be brought to the first-level cache.
pub(crate) fn near<T>(unit: Unit, start: *const T, len: usize) {
    unit.run(Near(start.cast(), len * size_of::<T>()));
}

struct Stream<'a, T>(&'a [T], &'a mut [T], &'a [T]);

impl<T: Float> Job for Stream<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(from, to, next) = self;
        let (from, bytes) = (&from[..to.len()], size_of_val(to));
        let (source, target) = (from.as_ptr().cast::<u8>(), to.as_mut_ptr().cast::<u8>());
        let lines = [source.addr(), target.addr(), bytes].iter().all(|at| at.is_multiple_of(LINE));
        if !lines || !S::STREAMS {
            return to.copy_from_slice(from);
        }
        for line in (0..bytes).step_by(LINE) {
            s.near(next.as_ptr().cast::<u8>().wrapping_add(line));
            for at in (line..line + LINE).step_by(S::LANES * size_of::<f32>()) {
                // SAFETY: vectors divide a line; both sides are `bytes` long, whole lines, and of plain data.
                unsafe { s.stream(s.load(source.add(at).cast()), target.add(at).cast()) };
            }
        }
    }
}

/// Copies a row past the caches where it consists of whole lines on both sides, and asks for the row to be copied next. A
/// [`fence`] must follow the last.
pub(crate) fn stream<T: Float>(unit: Unit, from: &[T], to: &mut [T], next: &[T]) {
    unit.run(Stream(from, to, next));
}

struct Fence;

impl Job for Fence {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        s.fence();
    }
}

/// Orders streamed stores before all later ones.
pub(crate) fn fence(unit: Unit) {
    unit.run(Fence);
}

struct Widen<'a, T>(&'a [T], &'a mut [f32]);

impl<T: Float> Job for Widen<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(from, to) = self;
        let to = &mut to[..from.len()];
        let whole = from.len() - from.len() % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            // SAFETY: `at + LANES` is at most `whole`, which neither slice is shorter than.
            unsafe { s.store(T::load(s, from.as_ptr().add(at)), to.as_mut_ptr().add(at)) };
        }
        if whole < from.len() {
            let (mut part, mut wide) = ([T::default(); LANES], [0.0; LANES]);
            part[..from.len() - whole].copy_from_slice(&from[whole..]);
            // SAFETY: both arrays hold the lanes of the widest unit.
            unsafe { s.store(T::load(s, part.as_ptr()), wide.as_mut_ptr()) };
            to[whole..].copy_from_slice(&wide[..from.len() - whole]);
        }
    }
}

struct Narrow<'a, T>(&'a [f32], &'a mut [T]);

impl<T: Float> Job for Narrow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(from, to) = self;
        let from = &from[..to.len()];
        let whole = to.len() - to.len() % S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            // SAFETY: `at + LANES` is at most `whole`, which neither slice is shorter than.
            unsafe { T::store(s, s.load(from.as_ptr().add(at)), to.as_mut_ptr().add(at)) };
        }
        if whole < to.len() {
            let (mut wide, mut part) = ([0.0; LANES], [T::default(); LANES]);
            wide[..to.len() - whole].copy_from_slice(&from[whole..]);
            // SAFETY: both arrays hold the lanes of the widest unit.
            unsafe { T::store(s, s.load(wide.as_ptr()), part.as_mut_ptr()) };
            let len = to.len() - whole;
            to[whole..].copy_from_slice(&part[..len]);
        }
    }
}

/// `to[i] = from[i]`, exact. `to` may be longer.
pub(crate) fn widen<T: Float>(unit: Unit, from: &[T], to: &mut [f32]) {
    unit.run(Widen(from, to));
}

/// `to[i] = from[i]` rounded to nearest, ties to even. `from` may be longer.
pub(crate) fn narrow<T: Float>(unit: Unit, from: &[f32], to: &mut [T]) {
    unit.run(Narrow(from, to));
}

/// `values[i]` rounded to `T` and widened again, by way of `room`.
pub(crate) fn round<T: Float>(unit: Unit, values: &mut [f32], room: &mut [T]) {
    if T::DTYPE != DType::F32 {
        let room = &mut room[..values.len()];
        narrow(unit, values, room);
        widen(unit, room, values);
    }
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
fn fused<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FUSED { a.mul_add(b, c) } else { a * b + c }
}

struct Scale<'a>(f32, &'a mut [f32], Option<&'a [f32]>);

impl Job for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self(factor, values, plus) = self;
        match plus {
            Some(plus) => values
                .iter_mut()
                .zip(plus)
                .for_each(|(value, plus)| *value = fused::<S>(factor, *value, *plus)),
            None => values.iter_mut().for_each(|value| *value *= factor),
        }
    }
}

/// `values[i] = factor * values[i] + plus[i]`
pub(crate) fn scale(unit: Unit, factor: f32, values: &mut [f32], plus: Option<&[f32]>) {
    unit.run(Scale(factor, values, plus));
}

struct AddScaled<'a>(&'a mut [f32], f32, &'a [f32]);

impl Job for AddScaled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self(sums, factor, values) = self;
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = fused::<S>(factor, *value, *sum));
    }
}

/// `sums[i] += factor * values[i]`
pub(crate) fn add_scaled(unit: Unit, sums: &mut [f32], factor: f32, values: &[f32]) {
    unit.run(AddScaled(sums, factor, values));
}

struct Dot<'a>(&'a [f32], &'a [f32]);

impl Job for Dot<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f32 {
        let mut sums = [0.0; LANES];
        let (a, a_end) = self.0.as_chunks::<LANES>();
        let (b, b_end) = self.1.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                sums[lane] = fused::<S>(a[lane], b[lane], sums[lane]);
            }
        }
        for (sum, (a, b)) in sums.iter_mut().zip(a_end.iter().zip(b_end)) {
            *sum = fused::<S>(*a, *b, *sum);
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                sums[lane] += sums[lane + half];
            }
        }
        sums[0]
    }
}

/// The sum of products: 16 strided partial sums, then halving.
pub(crate) fn dot(unit: Unit, a: &[f32], b: &[f32]) -> f32 {
    unit.run(Dot(a, b))
}
