//! RouteStats: three launches: over tokens, over chunks of sequences, and over what the chunks gave.

use super::Float;
use super::route::score_number;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{CHUNK, RouteStats, RouteStatsArgs, RouteStatsDims};
use moe_core::{Kernel, Op, Out, Path, within};

pub(super) static IMAGE: Image = image!("route_stats", [], single: [
    "route_stats_tokens": 0, "route_stats_chunks": 0, "route_stats_sum": 0,
]);

/// `RouteStatsParams` of `kernels/route_stats.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouteStatsParams {
    logits: Address,
    ids: Address,
    sequences: Address,
    counts: Address,
    prob_sums: Address,
    z_sum: Address,
    scores: Address,
    wholes: Address,
    squares: Address,
    part_counts: Address,
    part_sums: Address,
    part_squares: Address,
    tokens: u32,
    experts: u32,
    top_k: u32,
    sequence_count: u32,
    score: u32,
    slots: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for RouteStatsParams {}

const THREADS: u32 = 256;

/// Places for the chunks of all sequences.
fn slots(dims: &RouteStatsDims) -> usize {
    dims.tokens / CHUNK + dims.sequences
}

/// Words of scratch memory: scores, their sums, squares, counts, sums, and the squares of chunks.
fn layout(dims: &RouteStatsDims) -> [usize; 6] {
    let RouteStatsDims { tokens, experts, .. } = *dims;
    let parts = slots(dims).saturating_mul(experts);
    [tokens.saturating_mul(experts), tokens, tokens, parts, parts, tokens.div_ceil(CHUNK)]
}

impl<T: Float> Kernel<RouteStats<T>> for Cuda {
    fn scratch(&self, dims: &RouteStatsDims) -> usize {
        layout(dims).into_iter().fold(0, usize::saturating_add).saturating_mul(4)
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &RouteStatsDims,
        args: RouteStatsArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        // Kernels count in 32 bits.
        within(RouteStats::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(RouteStats::<T>::ID, "sequences", 0, i32::MAX as usize, dims.sequences)?;
        let call = Call::<RouteStats<T>>::new(self, stream, dims, &args)?;
        let RouteStatsDims { tokens, experts, top_k, sequences, score } = *dims;
        let mut next = call.scratch(scratch, Kernel::<RouteStats<T>>::scratch(self, dims))?;
        let [scores, wholes, squares, part_counts, part_sums, part_squares] = layout(dims).map(|words| {
            let start = next;
            next += 4 * words as u64;
            start
        });
        let params = RouteStatsParams {
            logits: call.read("logits", args.logits)?,
            ids: call.read("ids", args.ids)?,
            sequences: call.read("sequences", args.sequences)?,
            counts: call.write("counts", args.counts)?,
            prob_sums: call.write("prob_sums", args.prob_sums)?,
            z_sum: call.write("z_sum", args.z_sum)?,
            scores,
            wholes,
            squares,
            part_counts,
            part_sums,
            part_squares,
            tokens: tokens as u32,
            experts: experts as u32,
            top_k: top_k as u32,
            sequence_count: sequences as u32,
            score: score_number(score),
            slots: slots(dims) as u32,
        };
        call.launch("route_stats_tokens", Grid::new(tokens.div_ceil(8), THREADS), &params)?;
        // One row of blocks more, for the squares of all tokens.
        let chunks = slots(dims).max(tokens.div_ceil(CHUNK));
        let grid = Grid::of([chunks, experts.div_ceil(32) + 1, 1], THREADS);
        call.launch("route_stats_chunks", grid, &params)?;
        let sums = sequences * experts + 1;
        call.launch("route_stats_sum", Grid::new(sums.div_ceil(THREADS as usize), THREADS), &params)?;
        Ok(Path("general"))
    }
}
