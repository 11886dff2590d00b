//! RouteStats: scores, their sums by chunk of a sequence, and the chunks' by sequence.

use super::Float;
use super::scores::{self, loss_score};
use crate::call::{Call, Grid, Params, Place};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{NO_STORAGE, Source, source};
use crate::stream::Stream;
use moe_core::ops::{CHUNK, RouteStats, RouteStatsArgs, RouteStatsDims};
use moe_core::{DType, Kernel, Op, Out, Path, within};

pub(super) static SOURCE: Source = source!("route_stats", [], NO_STORAGE);

/// `StatsParams` of `kernels/route_stats.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct StatsParams {
    tokens: u32,
    experts: u32,
    top_k: u32,
    sequences: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for StatsParams {}

/// Work items of a group, which have an expert each.
const ITEMS: usize = 32;
/// Work items of the group that adds the squares.
const Z_ITEMS: usize = 64;

/// Places for the chunks of all sequences.
fn places(dims: &RouteStatsDims) -> usize {
    dims.tokens / CHUNK + dims.sequences
}

/// Words of scratch memory: scores, four sums per token, counts and sums of chunks, and their squares.
fn layout(dims: &RouteStatsDims) -> [usize; 5] {
    let parts = places(dims).saturating_mul(dims.experts);
    let scores = dims.tokens.saturating_mul(dims.experts);
    [scores, dims.tokens.saturating_mul(4), parts, parts, dims.tokens.div_ceil(CHUNK)]
}

impl<T: Float> Kernel<RouteStats<T>> for OpenCl {
    fn scratch(&self, dims: &RouteStatsDims) -> usize {
        layout(dims).into_iter().fold(0, usize::saturating_add).saturating_mul(size_of::<u32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &RouteStatsDims,
        args: RouteStatsArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        // Kernels count in 32 bits.
        within(RouteStats::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        let RouteStatsDims { tokens, experts, top_k, sequences, score } = *dims;
        let scores_first = (&scores::SOURCE, DType::U32);
        let mut call = Call::<RouteStats<T>>::new(self, stream, scores_first, dims, &args)?;
        let mut next = call.scratch(scratch, Kernel::<RouteStats<T>>::scratch(self, dims))?.of::<u32>();
        let [scores, sums, count_parts, prob_parts, z_parts] = layout(dims).map(|words| {
            let start = next;
            next = next.after(words);
            start
        });
        let (logits, ids) = (call.read("logits", args.logits)?, call.read("ids", args.ids)?);
        let bounds = call.read("sequences", args.sequences)?;
        let (counts, prob_sums) =
            (call.write("counts", args.counts)?, call.write("prob_sums", args.prob_sums)?);
        let z_sum = call.write("z_sum", args.z_sum)?;
        let params = StatsParams {
            tokens: tokens as u32,
            experts: experts as u32,
            top_k: top_k as u32,
            sequences: sequences as u32,
        };

        let of_scores = [logits, scores, sums, Place::NONE];
        scores::launch(&call, (tokens, experts), loss_score(score), of_scores)?;
        call.turn_to(self, (&SOURCE, DType::U32))?;
        let by_expert = |rows| Grid::of([experts.div_ceil(ITEMS), rows], [ITEMS, 1]);
        let of_chunks = [scores, sums, ids, bounds, count_parts, prob_parts];
        // Without sequences there are no counts.
        let chunks = if sequences == 0 { 0 } else { places(dims) };
        call.launch("stats_chunks", by_expert(chunks), &of_chunks, &params)?;
        let of_total = [count_parts, prob_parts, bounds, counts, prob_sums];
        call.launch("stats_total", by_expert(sequences), &of_total, &params)?;
        call.launch("stats_z", Grid::new(1, Z_ITEMS), &[sums, z_parts, z_sum], &params)?;
        Ok(Path("general"))
    }
}
