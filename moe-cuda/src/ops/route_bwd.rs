//! RouteBwd: one launch, in which the first blocks count the load and each warp of the others takes tokens in turn; one more
//! where the load is wanted.

use super::Float;
use super::route::score_number;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{RouteBwd, RouteBwdArgs, RouteBwdDims};
use moe_core::{Kernel, Op, Out, Path, within};

pub(super) static IMAGE: Image = image!("route_bwd", [], single: ["route_bwd": SHARED, "route_load": 0]);

/// `RouteBwdParams` of `kernels/route_bwd.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouteBwdParams {
    logits: Address,
    ids: Address,
    dweights: Address,
    row_of_slot: Address,
    sequences: Address,
    counts: Address,
    factors: Address,
    z_factor: Address,
    load: Address,
    dlogits: Address,
    rows: Address,
    parts: Address,
    tokens: u32,
    experts: u32,
    top_k: u32,
    sequence_count: u32,
    score: u32,
    normalize: u32,
    accumulate: u32,
    load_blocks: u32,
    scale: f32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for RouteBwdParams {}

const THREADS: u32 = 128;
const WARPS: usize = 4;
/// Most bytes of shared memory for a block's rows: what every device gives without asking, less the counters.
const SHARED: u32 = 40 << 10;
/// Most blocks whose rows lie in scratch memory.
const BLOCKS: usize = 256;

/// Most blocks that count the load, and slots for each at least.
const COUNTERS: (usize, usize) = (64, 2048);

/// Bytes of a block's rows.
fn rows(dims: &RouteBwdDims) -> usize {
    dims.experts.saturating_mul(WARPS * 2 * size_of::<f32>())
}

fn load_blocks(dims: &RouteBwdDims) -> usize {
    dims.tokens.saturating_mul(dims.top_k).div_ceil(COUNTERS.1).min(COUNTERS.0)
}

/// Bytes of scratch memory: rows where shared memory does not hold them, and what the load's blocks count.
fn layout(dims: &RouteBwdDims) -> [usize; 2] {
    let blocks = dims.tokens.div_ceil(WARPS).min(BLOCKS);
    let in_scratch = if rows(dims) <= SHARED as usize { 0 } else { blocks.saturating_mul(rows(dims)) };
    [in_scratch, load_blocks(dims).saturating_mul(dims.experts).saturating_mul(size_of::<u32>())]
}

impl<T: Float> Kernel<RouteBwd<T>> for Cuda {
    fn scratch(&self, dims: &RouteBwdDims) -> usize {
        let [rows, parts] = layout(dims);
        rows.saturating_add(parts)
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &RouteBwdDims,
        args: RouteBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        // Kernels count in 32 bits.
        within(RouteBwd::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(RouteBwd::<T>::ID, "sequences", 0, i32::MAX as usize, dims.sequences)?;
        let call = Call::<RouteBwd<T>>::new(self, stream, dims, &args)?;
        let RouteBwdDims { tokens, experts, top_k, sequences, rule, accumulate } = *dims;
        let scratch = call.scratch(scratch, Kernel::<RouteBwd<T>>::scratch(self, dims))?;
        let in_shared = rows(dims) <= SHARED as usize;
        let blocks = tokens.div_ceil(WARPS).min(if in_shared { usize::MAX } else { BLOCKS });
        let aux = match args.aux {
            Some(aux) => [
                call.read("sequences", aux.sequences)?,
                call.read("counts", aux.counts)?,
                call.read("factors", aux.factors)?,
            ],
            None => [0; 3],
        };
        let load_blocks = if args.load.is_some() { load_blocks(dims) } else { 0 };
        let params = RouteBwdParams {
            logits: call.read("logits", args.logits)?,
            ids: call.read("ids", args.ids)?,
            dweights: call.read("dweights", args.dweights)?,
            row_of_slot: call.read_some("row_of_slot", args.row_of_slot)?,
            sequences: aux[0],
            counts: aux[1],
            factors: aux[2],
            z_factor: call.read_some("z_factor", args.z_factor)?,
            load: call.write_some("load", args.load)?,
            dlogits: call.write("dlogits", args.dlogits)?,
            rows: if in_shared { 0 } else { scratch },
            parts: scratch + layout(dims)[0] as u64,
            tokens: tokens as u32,
            experts: experts as u32,
            top_k: top_k as u32,
            sequence_count: sequences as u32,
            score: score_number(rule.score),
            normalize: rule.normalize.into(),
            accumulate: accumulate.into(),
            load_blocks: load_blocks as u32,
            scale: rule.scale,
        };
        let shared = if in_shared { rows(dims) as u32 } else { 0 };
        call.launch("route_bwd", Grid::new(load_blocks + blocks, THREADS).shared(shared), &params)?;
        if params.load != 0 {
            call.launch("route_load", Grid::new(experts.div_ceil(THREADS as usize), THREADS), &params)?;
        }
        Ok(Path(if in_shared { "rows in shared memory" } else { "rows in scratch memory" }))
    }
}
