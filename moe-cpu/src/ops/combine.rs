//! Combine: a token's columns are summed in registers, some vectors at a time.

use super::{Launch, path, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::exact::{LANES, fused};
use crate::gemm::{Float, Job, Shared, Simd, share};
use moe_core::ops::{Combine, CombineArgs, CombineDims, NO_ROW};
use moe_core::{Device, Out, Path, View};

/// Tokens of a task.
const TOKENS: usize = 16;
/// Vectors that are summed side by side.
const VECTORS: usize = 4;

/// A term of a token: a row and its factor.
type Term<'a, T> = (&'a [T], f32);

/// What a token is made of.
struct Token<'a, T> {
    y: &'a [T],
    /// (top_k)
    rows: &'a [u32],
    /// (top_k)
    weights: Option<&'a [f32]>,
    base: [Option<Term<'a, T>>; 3],
    out: &'a mut [T],
}

impl<'a, T: Float> Token<'a, T> {
    /// The terms, in order.
    #[inline(always)]
    fn terms(&self) -> impl Iterator<Item = Term<'a, T>> {
        let (y, weights, width) = (self.y, self.weights, self.out.len());
        let slots = self.rows.iter().enumerate().filter(|(_, row)| **row != NO_ROW);
        slots
            .map(move |(k, row)| {
                (&y[*row as usize * width..][..width], weights.map_or(1.0, |weights| weights[k]))
            })
            .chain(self.base.into_iter().flatten())
    }

    /// `N` vectors of columns from `at` on.
    ///
    /// # Safety
    /// `at + N * LANES` is at most the width.
    #[inline(always)]
    unsafe fn sum<S: Simd, const N: usize>(&mut self, s: S, at: usize) {
        let mut sums = [s.splat(0.0); N];
        for (row, weight) in self.terms() {
            let weight = s.splat(weight);
            for (n, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a row is as long as the width.
                let value = unsafe { T::load(s, row.as_ptr().add(at + n * S::LANES)) };
                *sum = fused(s, weight, value, *sum);
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { T::store(s, sum, self.out.as_mut_ptr().add(at + n * S::LANES)) };
        }
    }

    /// The last columns, fewer than a vector.
    #[inline(always)]
    fn rest<S: Simd>(&mut self, s: S, at: usize) {
        let mut sum = s.splat(0.0);
        let mut part = [T::default(); LANES];
        let len = self.out.len() - at;
        for (row, weight) in self.terms() {
            part[..len].copy_from_slice(&row[at..]);
            // SAFETY: no unit has more than `LANES` lanes.
            sum = fused(s, s.splat(weight), unsafe { T::load(s, part.as_ptr()) }, sum);
        }
        // SAFETY: as above.
        unsafe { T::store(s, sum, part.as_mut_ptr()) };
        self.out[at..].copy_from_slice(&part[..len]);
    }
}

impl<T: Float> Job for Token<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let width = self.out.len();
        let mut at = 0;
        while at + VECTORS * S::LANES <= width {
            // SAFETY: the loop's condition.
            unsafe { self.sum::<S, VECTORS>(s, at) };
            at += VECTORS * S::LANES;
        }
        while at + S::LANES <= width {
            // SAFETY: the loop's condition.
            unsafe { self.sum::<S, 1>(s, at) };
            at += S::LANES;
        }
        if at < width {
            self.rest(s, at);
        }
    }
}

impl<T: Float> Launch<Combine<T>> for Cpu {
    fn launch(
        &self,
        (): &(),
        dims: &CombineDims,
        args: CombineArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<Combine<T>>(self, dims, &args, scratch.len())?;
        let CombineDims { tokens, top_k, width, .. } = *dims;
        let (y, rows, weights) = (args.y.host(), args.row_of_slot.host(), args.weights.map(View::host));
        let base = args.base.map(|base| base.map(|base| (base.rows.host(), base.scale.map(View::host))));
        dims.check_rows(rows)?;
        // Tokens without columns may be any number.
        let tokens = if width > 0 { tokens } else { 0 };
        let out = Shared::new(args.out.host());
        self.enter(|| {
            share(self.threads(), tokens.div_ceil(TOKENS), &mut [], 0, |queue, _| {
                for token in queue.flat_map(|task| task * TOKENS..tokens.min((task + 1) * TOKENS)) {
                    self.unit().run(Token {
                        y,
                        rows: &rows[token * top_k..][..top_k],
                        weights: weights.map(|weights| &weights[token * top_k..][..top_k]),
                        base: base.map(|base| {
                            let (rows, scale) = base?;
                            Some((&rows[token * width..][..width], scale.map_or(1.0, |scale| scale[token])))
                        }),
                        // SAFETY: each token is in one task.
                        out: unsafe { out.part(token * width..(token + 1) * width) },
                    });
                }
            });
        });
        Ok(path(self))
    }
}
