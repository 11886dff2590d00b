//! SumSquares: the chains of several chunks side by side, each in its own order, then chunk to chunk.

use super::{Launch, path, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Float, Job, SLACK, Scratch, Shared, Simd, bytes, share};
use moe_core::ops::{CHUNK, SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{Device, Out, Path};

/// Chunks whose chains run side by side, enough to hide the latency of a sum.
const SIDE: usize = 8;

/// Sums of squares of up to [`SIDE`] chunks.
struct Chunks<'a> {
    values: &'a [f32],
    sums: &'a mut [f32],
}

impl Job for Chunks<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        if self.values.len() < SIDE * CHUNK {
            for (values, sum) in self.values.chunks(CHUNK).zip(self.sums) {
                *sum = values.iter().fold(0.0, |sum, value| value.mul_add(*value, sum));
            }
            return;
        }
        let mut sums = [0.0; SIDE];
        for at in 0..CHUNK {
            for (chunk, sum) in sums.iter_mut().enumerate() {
                let value = self.values[chunk * CHUNK + at];
                *sum = value.mul_add(value, *sum);
            }
        }
        self.sums.copy_from_slice(&sums);
    }
}

impl<T: Float> Launch<SumSquares<T>> for Cpu {
    fn scratch(&self, dims: &SumSquaresDims) -> usize {
        SLACK + bytes::<f32>(dims.len.div_ceil(CHUNK))
    }

    fn launch(
        &self,
        (): &(),
        dims: &SumSquaresDims,
        args: SumSquaresArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<SumSquares<T>>(self, dims, &args, scratch.len())?;
        let (unit, values) = (self.unit(), args.values.host());
        let chunks = values.len().div_ceil(CHUNK);
        let all = Scratch::new(scratch.host()).take::<f32>(chunks);
        let sums = Shared::new(&mut *all);
        self.enter(|| {
            share(self.threads(), chunks.div_ceil(SIDE), &mut [], 0, |queue, _| {
                for task in queue {
                    let (first, last) = (task * SIDE, chunks.min((task + 1) * SIDE));
                    let values = &values[first * CHUNK..values.len().min(last * CHUNK)];
                    // SAFETY: each chunk is in one task.
                    let sums = unsafe { sums.part(first..last) };
                    unit.run(Chunks { values, sums });
                }
            });
        });
        let sum = all.iter().fold(0.0, |sum, part| sum + part);
        let out = &mut args.sum.host()[0];
        *out = if dims.accumulate { *out + sum } else { sum };
        Ok(path(self))
    }
}
