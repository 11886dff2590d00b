//! What this processor can do at most: the rate of its multipliers, and of reading memory. Speeds are shares of these.

use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Ahead, Block, Float, Held, Job, Simd, TILE, share};
use crate::memory::Buffer;
use moe_core::{DType, Device};
use std::hint::black_box;
use std::time::Instant;

/// Sums that are independent of each other: latency times instructions a cycle, and within sixteen registers.
const SUMS: usize = 12;
/// Products a sum takes in a row, so that a round lasts about half a millisecond.
const STEPS: usize = 1 << 17;
/// Bytes that a thread reads in a row.
const PIECE: usize = 64 << 10;

/// Multiplies and adds in registers.
struct Products {
    /// bf16 pairs, where the unit multiplies them
    pairs: bool,
}

impl Job for Products {
    /// operations done
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        if S::MATRIX && self.pairs {
            return in_tiles(s);
        }
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
        let mut sums = [s.splat(0.0); SUMS];
        let pairs = self.pairs && S::DOT;
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = if pairs { s.dot_bf16(*sum, a, b) } else { s.fma(a, b, *sum) };
            }
        }
        let sum = sums.into_iter().fold(s.splat(0.0), |sum, part| s.add(sum, part));
        let mut lanes = [0.0_f32; 16];
        // SAFETY: no unit has more than 16 lanes.
        unsafe { s.store(sum, lanes.as_mut_ptr()) };
        black_box(lanes);
        (STEPS * SUMS * S::LANES * if pairs { 4 } else { 2 }) as f64
    }
}

/// Operations done in tiles, both operands from the first-level cache.
#[inline(always)]
fn in_tiles<S: Simd>(s: S) -> f64 {
    const DEPTH: usize = 4;
    const ROUNDS: usize = STEPS / 32;
    let left = [0.0_f32; 2 * TILE * DEPTH * TILE];
    let panel = [0.0_f32; DEPTH * TILE * 32];
    let mut sums = [0.0_f32; 2 * TILE * 32];
    for _ in 0..ROUNDS {
        let block = Block {
            left: black_box(&left).as_ptr(),
            left_pitch: DEPTH * TILE,
            panel: black_box(&panel).as_ptr(),
            depth: DEPTH,
            sums: sums.as_mut_ptr(),
            pitch: S::COLS,
            first: true,
        };
        // SAFETY: panels are at most 32 columns wide, and all lies in the arrays; the caller holds the unit.
        unsafe { s.matrix::<2>(block, Ahead::new::<f32>(&[], 0)) };
        black_box(&sums);
    }
    (ROUNDS * 2 * TILE * S::COLS * DEPTH * TILE * 4) as f64
}

/// Reads memory and does as little as possible with it.
struct Read<'a>(&'a [f32]);

impl Job for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat(0.0); 8];
        for part in self.0.chunks_exact(8 * S::LANES) {
            s.prefetch(part.as_ptr().wrapping_add(1024).cast());
            for (at, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `part` holds eight vectors.
                *sum = s.add(*sum, unsafe { s.load(part.as_ptr().add(at * S::LANES)) });
            }
        }
        let mut lanes = [0.0_f32; 16];
        for sum in sums {
            // SAFETY: no unit has more than 16 lanes.
            unsafe { s.store(sum, lanes.as_mut_ptr()) };
            black_box(lanes);
        }
    }
}

impl Cpu {
    /// Operations a second of products and sums in registers, all threads together: pairs of bf16 where the unit multiplies
    /// them, else f32. Each thread counts with the fastest of `rounds`.
    pub fn peak_flops<T: Float>(&self, rounds: usize) -> f64 {
        let (unit, pairs) = (self.unit(), T::DTYPE == DType::Bf16);
        let rates = self.pool().broadcast(|_| {
            let _held = Held::new(unit);
            (0..rounds.max(1)).fold(0.0_f64, |fastest, _| {
                let start = Instant::now();
                let work = unit.run(Products { pairs });
                fastest.max(work / start.elapsed().as_secs_f64())
            })
        });
        rates.into_iter().sum()
    }

    /// Memory to measure the rate of reading with. It should be several times what the caches hold.
    ///
    /// # Errors
    /// [`CpuError::Memory`].
    pub fn reader(&self, bytes: usize) -> Result<Reader, CpuError> {
        let memory = self.alloc(&(), bytes.next_multiple_of(PIECE) / size_of::<f32>())?;
        Ok(Reader { cpu: self.clone(), memory })
    }
}

/// Memory that is read from one end to the other.
pub struct Reader {
    cpu: Cpu,
    memory: Buffer<f32>,
}

impl Reader {
    /// Bytes a second of all threads together, once through the memory.
    pub fn rate(&self) -> f64 {
        const LEN: usize = PIECE / size_of::<f32>();
        let (unit, threads, memory) = (self.cpu.unit(), self.cpu.threads(), &self.memory);
        let start = Instant::now();
        self.cpu.enter(|| {
            share(threads, memory.len() / LEN, &mut [], 0, |queue, _| {
                queue.for_each(|piece| unit.run(Read(&memory[piece * LEN..][..LEN])));
            });
        });
        size_of_val(&**memory) as f64 / start.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::Isa;

    #[test]
    fn limits_are_rates() {
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(1, isa).unwrap();
            assert!(cpu.peak_flops::<f32>(1) > 1e6);
            assert!(cpu.reader(1 << 20).unwrap().rate() > 1e6);
        }
    }
}
