//! RouteStats: one task for each chunk of a sequence, whose counts and sums are then added in order.

use super::{Launch, path, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Float, Job, SLACK, Scratch, Shared, Simd, bytes, share};
use crate::scores::{Powers, of_losses, padded, powers, score, softmax, sum};
use moe_core::ops::{CHUNK, RouteStats, RouteStatsArgs, RouteStatsDims, ScoreFunction};
use moe_core::{Accum, Device, Op, Out, Path, check_offsets};
use std::ops::Range;

/// The chunks of all sequences, and of the tokens after the last one, which belong to no sequence.
#[derive(Clone, Copy)]
struct Chunks<'a> {
    bounds: &'a [u32],
    tokens: usize,
}

impl<'a> Chunks<'a> {
    fn tokens(self, sequence: usize) -> Range<usize> {
        let end = self.bounds.get(sequence + 1).map_or(self.tokens, |end| *end as usize);
        self.bounds[sequence] as usize..end
    }

    fn count(self, sequence: usize) -> usize {
        self.tokens(sequence).len().div_ceil(CHUNK)
    }

    fn total(self) -> usize {
        (0..self.bounds.len()).map(|sequence| self.count(sequence)).sum()
    }

    /// The chunks of these numbers, which ascend: each one's number, and its tokens.
    fn select(self, numbers: impl Iterator<Item = usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (mut sequence, mut before) = (0, 0);
        numbers.map(move |number| {
            while number - before >= self.count(sequence) {
                before += self.count(sequence);
                sequence += 1;
            }
            let tokens = self.tokens(sequence);
            let start = tokens.start + (number - before) * CHUNK;
            (number, start..tokens.end.min(start + CHUNK))
        })
    }
}

/// The statistics of one chunk.
struct Chunk<'a> {
    /// the score function that losses see
    score: ScoreFunction,
    experts: usize,
    top_k: usize,
    logits: &'a [f32],
    ids: &'a [u32],
    /// each token's squared logsumexp
    squares: &'a mut [f32],
    /// counts and probability sums, for chunks of a sequence
    parts: Option<(&'a mut [u32], &'a mut [f32])>,
    row: &'a mut [f32],
}

impl Job for Chunk<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        let (experts, row) = (self.experts, self.row);
        if let Some((counts, sums)) = &mut self.parts {
            sums.fill(0.0);
            counts.fill(0);
            for id in &self.ids[..self.squares.len() * self.top_k] {
                if let Some(count) = counts.get_mut(*id as usize) {
                    *count += 1;
                }
            }
        }
        for (logits, square) in self.logits.chunks_exact(experts).zip(self.squares) {
            row[..experts].copy_from_slice(logits);
            let is_softmax = self.score == ScoreFunction::Softmax;
            let Powers { max, sum: whole } =
                if is_softmax { softmax(row, experts) } else { powers(row, experts) };
            let z = max + whole.fixed_ln();
            *square = z * z;
            let Some((_, sums)) = &mut self.parts else { continue };
            if !is_softmax {
                row[..experts].copy_from_slice(logits);
                score(self.score, row, experts);
            }
            let whole = sum(row) + 1e-20;
            sums.iter_mut().zip(&*row).for_each(|(sum, score)| *sum += score / whole);
        }
    }
}

/// Chunks of a sequence at most.
fn most_chunks(dims: &RouteStatsDims) -> usize {
    dims.tokens / CHUNK + dims.sequences
}

impl<T: Float> Launch<RouteStats<T>> for Cpu {
    fn scratch(&self, dims: &RouteStatsDims) -> usize {
        let parts = most_chunks(dims) * dims.experts;
        let rows = self.threads() * (SLACK + bytes::<f32>(padded(dims.experts)));
        SLACK + bytes::<f32>(dims.tokens) + bytes::<u32>(parts) + bytes::<f32>(parts) + rows
    }

    fn launch(
        &self,
        (): &(),
        dims: &RouteStatsDims,
        args: RouteStatsArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<RouteStats<T>>(self, dims, &args, scratch.len())?;
        let RouteStatsDims { tokens, experts, top_k, sequences, score } = *dims;
        let (logits, ids, bounds) = (args.logits.host(), args.ids.host(), args.sequences.host());
        check_offsets(RouteStats::<T>::ID, bounds, tokens)?;
        let (unit, chunks) = (self.unit(), Chunks { bounds, tokens });
        let mut scratch = Scratch::new(scratch.host());
        let squares = scratch.take::<f32>(tokens);
        let part_counts = scratch.take::<u32>(most_chunks(dims) * experts);
        let part_sums = scratch.take::<f32>(most_chunks(dims) * experts);
        let each = SLACK + bytes::<f32>(padded(experts));
        let in_sequences = chunks.total() - chunks.count(sequences);
        {
            let (squares, counts) = (Shared::new(&mut *squares), Shared::new(&mut *part_counts));
            let sums = Shared::new(&mut *part_sums);
            self.enter(|| {
                share(self.threads(), chunks.total(), scratch.rest(), each, |queue, memory| {
                    let row = Scratch::new(memory).take(padded(experts));
                    for (number, tokens) in chunks.select(queue) {
                        let part = number * experts..(number + 1) * experts;
                        // SAFETY: each chunk has its own tokens, counts and sums.
                        let parts = (number < in_sequences)
                            .then(|| unsafe { (counts.part(part.clone()), sums.part(part.clone())) });
                        unit.run(Chunk {
                            score: of_losses(score),
                            experts,
                            top_k,
                            logits: &logits[tokens.start * experts..tokens.end * experts],
                            ids: &ids[tokens.start * top_k..tokens.end * top_k],
                            // SAFETY: as above.
                            squares: unsafe { squares.part(tokens) },
                            parts,
                            row,
                        });
                    }
                });
            });
        }
        let (counts, sums) = (args.counts.host(), args.prob_sums.host());
        counts.fill(0);
        sums.fill(0.0);
        let mut number = 0;
        for sequence in 0..sequences {
            for _ in 0..chunks.count(sequence) {
                let (from, to) = (number * experts, sequence * experts);
                for expert in 0..experts {
                    counts[to + expert] += part_counts[from + expert];
                    sums[to + expert] += part_sums[from + expert];
                }
                number += 1;
            }
        }
        let parts = squares.chunks(CHUNK).map(|chunk| chunk.iter().fold(0.0, |part, square| part + square));
        args.z_sum.host()[0] = parts.fold(0.0, |sum, part: f32| sum + part);
        Ok(path(self))
    }
}
