//! GateBwd: dx in one launch; dgate in rounds of as many chunks as scratch memory holds, each a product and a sum.

use super::Float;
use super::route::JitterParams;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use moe_core::ops::{CHUNK, GateBwd, GateBwdArgs, GateBwdDims};
use moe_core::{Kernel, Out, Path};

pub(super) static IMAGE: Image = image!(
    "gate_bwd",
    ["gate_bwd_dx": 0, "gate_bwd_dgate_128": 0, "gate_bwd_dgate_32": 0, "gate_bwd_dgate_8": 0],
    single: ["gate_bwd_dbias": 0, "gate_bwd_sum": 0]
);

/// `GateBwdParams` of `kernels/gate_bwd.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct GateBwdParams {
    dlogits: Address,
    x: Address,
    gate: Address,
    jitter: JitterParams,
    dx: Address,
    dgate: Address,
    dbias: Address,
    total: Address,
    parts: Address,
    bias_parts: Address,
    tokens: u32,
    width: u32,
    experts: u32,
    accumulate: u32,
    first_chunk: u32,
    chunks: u32,
    last_round: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for GateBwdParams {}

const SUMMERS: u32 = 256;
/// Bytes of scratch memory for a round's chunks, unless one chunk has more.
const ROUND: usize = 64 << 20;

/// Bytes of one chunk's dgate.
fn part(dims: &GateBwdDims) -> usize {
    dims.experts.saturating_mul(dims.width).saturating_mul(size_of::<f32>())
}

/// Bytes of scratch memory: the sum of earlier rounds, a round's chunks, all chunks' dbias. They grow with every size.
fn layout(dims: &GateBwdDims) -> [usize; 3] {
    let (part, chunks) = (part(dims), dims.tokens.div_ceil(CHUNK));
    let bias = chunks.saturating_mul(dims.experts).saturating_mul(size_of::<f32>());
    [part, chunks.saturating_mul(part).min(part.max(ROUND)), bias]
}

/// Kernel, experts and columns of a block's tile, and its threads.
fn tile<T: Float>(experts: usize) -> (&'static str, usize, usize, u32) {
    match experts {
        ..=8 => (kernel!(T, "gate_bwd_dgate_8"), 8, 128, 64),
        9..=64 => (kernel!(T, "gate_bwd_dgate_32"), 32, 64, 128),
        _ => (kernel!(T, "gate_bwd_dgate_128"), 128, 64, 128),
    }
}

impl<T: Float> Kernel<GateBwd<T>> for Cuda {
    fn scratch(&self, dims: &GateBwdDims) -> usize {
        layout(dims).into_iter().fold(0, usize::saturating_add)
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &GateBwdDims,
        args: GateBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<GateBwd<T>>::new(self, stream)?;
        let GateBwdDims { tokens, width, experts, jitter, accumulate } = *dims;
        let mut next = call.scratch(scratch, Kernel::<GateBwd<T>>::scratch(self, dims))?;
        let [total, parts, bias_parts] = layout(dims).map(|bytes| {
            let start = next;
            next += bytes as u64;
            start
        });
        let mut params = GateBwdParams {
            dlogits: call.read("dlogits", args.dlogits)?,
            x: call.read("x", args.x)?,
            gate: call.weight("gate", args.gate)?,
            jitter: JitterParams::new(call.read_some("stamp", args.stamp)?, jitter),
            dx: call.write("dx", args.dx)?,
            dgate: call.write("dgate", args.dgate)?,
            dbias: call.write_some("dbias", args.dbias)?,
            total,
            parts,
            bias_parts,
            tokens: tokens as u32,
            width: width as u32,
            experts: experts as u32,
            accumulate: accumulate.into(),
            first_chunk: 0,
            chunks: 0,
            last_round: 0,
        };
        let blocks = tokens.div_ceil(128) * width.div_ceil(64);
        call.launch(kernel!(T, "gate_bwd_dx"), Grid::new(blocks, 128), &params)?;
        let chunks = tokens.div_ceil(CHUNK);
        if params.dbias != 0 {
            let grid = Grid::of([experts.div_ceil(SUMMERS as usize), chunks, 1], SUMMERS);
            call.launch("gate_bwd_dbias", grid, &params)?;
        }
        let (kernel, rows, columns, threads) = tile::<T>(experts);
        let across = experts.div_ceil(rows) * width.div_ceil(columns);
        let round = (ROUND / part(dims).max(1)).max(1);
        // Without tokens there is still a sum to be stored.
        for first in (0..chunks.max(1)).step_by(round) {
            let count = round.min(chunks - first);
            params.first_chunk = first as u32;
            params.chunks = count as u32;
            params.last_round = (first + count == chunks).into();
            call.launch(kernel, Grid::of([across, count, 1], threads), &params)?;
            let sums = (experts * width).max(experts).div_ceil(SUMMERS as usize);
            call.launch("gate_bwd_sum", Grid::new(sums, SUMMERS), &params)?;
        }
        Ok(Path("fused chains"))
    }
}
