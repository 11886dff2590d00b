//! GateBwd: dx in one launch; dgate in rounds of as many chunks as scratch memory holds, each a product and a sum.

mod hopper;

use super::Float;
use super::route::JitterParams;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use hopper::Operands;
use moe_core::ops::{CHUNK, GateBwd, GateBwdArgs, GateBwdDims};
use moe_core::{DType, Kernel, Op, Out, Path, within};

pub(super) static IMAGE: Image = image!(
    "gate_bwd",
    ["gate_bwd_dx": 0, "gate_bwd_dgate_128": 0, "gate_bwd_dgate_32": 0, "gate_bwd_dgate_8": 0],
    single: [
        "gate_bwd_dx_split_bf16": 0,
        "gate_bwd_dx_split_f16": 0,
        "gate_bwd_dgate_split_64_bf16": 0,
        "gate_bwd_dgate_split_64_f16": 0,
        "gate_bwd_dgate_split_32_bf16": 0,
        "gate_bwd_dgate_split_32_f16": 0,
        "gate_bwd_dbias": 0,
        "gate_bwd_sum": 0,
        "gate_bwd_parts": 0,
    ]
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
const ROUND: usize = 16 << 20;

/// Bytes of one chunk's dgate.
fn part(dims: &GateBwdDims) -> usize {
    dims.experts.saturating_mul(dims.width).saturating_mul(size_of::<f32>())
}

/// Bytes of scratch memory: the sum of earlier rounds, a round's chunks, all chunks' dbias, and Hopper's operands. They grow with
/// every size, and each begins at a multiple of 16.
fn layout<T: Float>(cuda: &Cuda, dims: &GateBwdDims) -> [usize; 7] {
    let (part, chunks) = (part(dims), dims.tokens.div_ceil(CHUNK));
    let all = chunks.saturating_mul(part);
    let total = if all > ROUND { part } else { 0 };
    let bias = chunks.saturating_mul(dims.experts).saturating_mul(size_of::<f32>());
    let [parts, gates, index, bounds] = hopper::layout::<T>(cuda, dims);
    let bytes = [total, all.min(part.max(ROUND)), bias, parts, gates, index, bounds];
    bytes.map(|bytes| bytes.checked_next_multiple_of(16).unwrap_or(usize::MAX))
}

/// A kernel with the rows, columns and threads of a block.
struct Tile(&'static str, usize, usize, u32);

impl Tile {
    fn dx<T: Float>(split: bool) -> Self {
        match split {
            true => Self(kernel!(T, "gate_bwd_dx_split"), 64, 128, 128),
            false => Self(kernel!(T, "gate_bwd_dx"), 128, 64, 128),
        }
    }

    /// The rows are experts, and few experts leave matrix units half idle.
    fn dgate<T: Float>(split: bool, experts: usize) -> Self {
        match (experts, split) {
            (..=8, _) => Self(kernel!(T, "gate_bwd_dgate_8"), 8, 128, 64),
            (9..=32, true) => Self(kernel!(T, "gate_bwd_dgate_split_32"), 32, 128, 128),
            (33.., true) => Self(kernel!(T, "gate_bwd_dgate_split_64"), 64, 128, 128),
            (9..=64, false) => Self(kernel!(T, "gate_bwd_dgate_32"), 32, 64, 128),
            (65.., false) => Self(kernel!(T, "gate_bwd_dgate_128"), 128, 64, 128),
        }
    }

    fn blocks(&self, rows: usize, columns: usize) -> usize {
        rows.div_ceil(self.1) * columns.div_ceil(self.2)
    }
}

impl<T: Float> Kernel<GateBwd<T>> for Cuda {
    fn scratch(&self, dims: &GateBwdDims) -> usize {
        layout::<T>(self, dims).into_iter().fold(0, usize::saturating_add)
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &GateBwdDims,
        args: GateBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        // Kernels count in 32 bits.
        within(GateBwd::<T>::ID, "width", 0, i32::MAX as usize, dims.width)?;
        within(GateBwd::<T>::ID, "tokens", 0, MOST_CHUNKS * CHUNK, dims.tokens)?;
        let call = Call::<GateBwd<T>>::new(self, stream, dims, &args)?;
        let GateBwdDims { tokens, width, experts, jitter, accumulate } = *dims;
        let mut next = call.scratch(scratch, Kernel::<GateBwd<T>>::scratch(self, dims))?;
        let [total, parts, bias_parts, operands @ ..] = layout::<T>(self, dims).map(|bytes| {
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
        let chunks = tokens.div_ceil(CHUNK);
        if params.dbias != 0 {
            let grid = Grid::of([experts.div_ceil(SUMMERS as usize), chunks, 1], SUMMERS);
            call.launch("gate_bwd_dbias", grid, &params)?;
        }
        // f32 keeps its chains; tf32 holds the other types' values, so that only dlogits have to be split.
        let split = T::DTYPE != DType::F32 && self.capability().0 >= 8;
        // Jitter leaves values that tf32 does not hold.
        let dgate = Tile::dgate::<T>(split && jitter.is_none(), experts);
        let hopper = match hopper::fits::<T>(self, dims, &params) {
            true => Some(Operands::make(&call, &params, operands)?),
            false => None,
        };
        match hopper {
            Some(operands) => operands.dx(&call, dims, params.dx)?,
            None => {
                let dx = Tile::dx::<T>(split);
                call.launch(dx.0, Grid::new(dx.blocks(tokens, width), dx.3), &params)?;
            }
        }
        let round = (ROUND / part(dims).max(1)).clamp(1, MOST_CHUNKS);
        // Without tokens there is still a sum to be stored.
        for first in (0..chunks.max(1)).step_by(round) {
            let count = round.min(chunks - first);
            params.first_chunk = first as u32;
            params.chunks = count as u32;
            params.last_round = (first + count == chunks).into();
            match hopper {
                Some(operands) => operands.dgate(&call, dims, &params, [first, count])?,
                None => {
                    let grid = Grid::of([dgate.blocks(experts, width), count, 1], dgate.3);
                    call.launch(dgate.0, grid, &params)?;
                }
            }
            let sums = (experts * width).max(experts).div_ceil(SUMMERS as usize);
            call.launch("gate_bwd_sum", Grid::new(sums, SUMMERS), &params)?;
        }
        Ok(match hopper {
            Some(_) => hopper::PATH,
            None if split => Path("split, matrix units"),
            None => Path("fused chains"),
        })
    }
}

/// Most chunks of a round: blocks along a grid's second axis.
const MOST_CHUNKS: usize = 65535;
