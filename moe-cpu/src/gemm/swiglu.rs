//! SwiGLU on a row of sums in one pass: what [`act`](super::act) and its neighbours do in several, with the same bits.

use super::float::Float;
use super::formula::{Formula, SwiGlu};
use super::isa::{Job, Unit};
use super::simd::Simd;

/// Columns must be a multiple of this: most lanes of any unit, and the partial sums of [`dot`](super::dot).
pub(crate) const EVEN: usize = 16;

/// `a = swiglu(gate, up)`, both rounded to the storage type before, and kept in `h` if that is wanted.
pub(crate) struct Up<'a, T> {
    pub(crate) sums: [&'a [f32]; 2],
    pub(crate) h: Option<[&'a mut [T]; 2]>,
    pub(crate) a: &'a mut [T],
}

impl<T: Float> Up<'_, T> {
    pub(crate) fn run_on(self, unit: Unit) {
        unit.run(self);
    }
}

impl<T: Float> Job for Up<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { sums, h, a } = self;
        let len = a.len();
        assert!(len.is_multiple_of(EVEN) && sums.iter().all(|sums| sums.len() == len));
        let mut room = [[T::default(); EVEN]; 2];
        let keep = h.is_some();
        let [gate, up] = match h {
            Some(h) => {
                assert!(h.iter().all(|h| h.len() == len));
                h.map(|h| h.as_mut_ptr())
            }
            None => room.each_mut().map(|room| room.as_mut_ptr()),
        };
        for at in (0..len).step_by(S::LANES) {
            let to = if keep { at } else { 0 };
            // SAFETY: `at + LANES` is at most `len`, as many as all slices hold; `room` holds the lanes of any unit.
            unsafe {
                T::store(s, s.load(sums[0].as_ptr().add(at)), gate.add(to));
                T::store(s, s.load(sums[1].as_ptr().add(at)), up.add(to));
                let value = SwiGlu.value(s, T::load(s, gate.add(to)), T::load(s, up.add(to)));
                T::store(s, value, a.as_mut_ptr().add(at));
            }
        }
    }
}

/// For the gradient `da` of a row of a: h becomes its own gradient, `a = score * swiglu(h)`, and `partial` gets the products of
/// `da` with the activation, a sum for each `chunk` columns.
pub(crate) struct Down<'a, T> {
    pub(crate) da: &'a [f32],
    pub(crate) score: f32,
    pub(crate) h: [&'a mut [T]; 2],
    pub(crate) a: &'a mut [T],
    pub(crate) partial: &'a mut [f32],
    pub(crate) chunk: usize,
}

impl<T: Float> Down<'_, T> {
    pub(crate) fn run_on(self, unit: Unit) {
        unit.run(self);
    }
}

impl<T: Float> Job for Down<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { da, score, h: [gate, up], a, partial, chunk } = self;
        let len = da.len();
        assert!(
            len.is_multiple_of(EVEN) && chunk.is_multiple_of(EVEN) && partial.len() == len.div_ceil(chunk)
        );
        assert!(gate.len() == len && up.len() == len && a.len() == len);
        let score = s.splat(score);
        for (partial, start) in partial.iter_mut().zip((0..len).step_by(chunk)) {
            let mut lanes = [0.0_f32; EVEN];
            for at in (start..len.min(start + chunk)).step_by(EVEN) {
                for part in (0..EVEN).step_by(S::LANES) {
                    // SAFETY: `at + EVEN` is at most `len`, as many as all slices hold; `lanes` holds `EVEN`.
                    unsafe {
                        let (place, sum) = (at + part, lanes.as_mut_ptr().add(part));
                        let da = s.load(da.as_ptr().add(place));
                        let (gate, up) = (gate.as_mut_ptr().add(place), up.as_mut_ptr().add(place));
                        let (g, u) = (T::load(s, gate), T::load(s, up));
                        let [dg, du, value] = SwiGlu.gradient(s, g, u, s.mul(score, da));
                        s.store(s.fma(da, value, s.load(sum)), sum);
                        T::store(s, dg, gate);
                        T::store(s, du, up);
                        T::store(s, s.mul(score, value), a.as_mut_ptr().add(place));
                    }
                }
            }
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    lanes[lane] += lanes[lane + half];
                }
            }
            *partial = lanes[0];
        }
    }
}
