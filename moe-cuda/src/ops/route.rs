//! Route: a kernel for the logits, in tiles that keep all multiprocessors busy or in chains for few tokens, and one for what
//! follows from them, a warp per token.

mod few;
mod native;

use super::Float;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use few::Few;
use moe_core::ops::{Jitter, Route, RouteArgs, RouteDims, ScoreFunction, Selection};
use moe_core::{DType, Kernel, Op, Out, Path, within};
use native::NativeParams;

pub(super) use few::IMAGE as FEW_IMAGE;
pub(super) use native::IMAGE as NATIVE_IMAGE;

pub(super) static IMAGE: Image = image!(
    "route",
    [
        "route_gate_128x64": 0,
        "route_gate_64x64": 0,
        "route_gate_64x32": 0,
        "route_gate_32x32": 0,
        "route_gate_64x8": 0,
        "route_gate_16x16": 0,
        "route_gate_8x8": 0,
    ],
    single: ["route_choose": 0, "route_choose_any": 0]
);

/// `RouteParams` of `kernels/choose.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RouteParams {
    x: Address,
    gate: Address,
    gate_bias: Address,
    selection_bias: Address,
    forced_ids: Address,
    jitter: JitterParams,
    logits: Address,
    ids: Address,
    weights: Address,
    non_finite: Address,
    rows: Address,
    tokens: u32,
    width: u32,
    experts: u32,
    top_k: u32,
    groups: u32,
    groups_kept: u32,
    score: u32,
    round_robin: u32,
    normalize: u32,
    scale: f32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for RouteParams {}

impl RouteParams {
    /// The arguments' addresses. `rows` is scratch memory for what registers do not hold, or 0.
    pub(super) fn new<O: Op, T: Float>(
        call: &Call<'_, O>,
        dims: &RouteDims,
        args: RouteArgs<'_, Cuda, T>,
        rows: Address,
    ) -> Result<Self, CudaError> {
        let RouteDims { tokens, width, experts, top_k, rule } = *dims;
        Ok(Self {
            x: call.read("x", args.x)?,
            gate: call.weight("gate", args.gate)?,
            gate_bias: call.read_some("gate_bias", args.gate_bias)?,
            selection_bias: call.read_some("selection_bias", args.selection_bias)?,
            forced_ids: call.read_some("forced_ids", args.forced_ids)?,
            jitter: JitterParams::new(call.read_some("stamp", args.stamp)?, rule.jitter),
            logits: call.write("logits", args.logits)?,
            ids: call.write("ids", args.ids)?,
            weights: call.write("weights", args.weights)?,
            non_finite: call.write("non_finite", args.non_finite)?,
            rows,
            tokens: tokens as u32,
            width: width as u32,
            experts: experts as u32,
            top_k: top_k as u32,
            groups: rule.groups as u32,
            groups_kept: rule.groups_kept as u32,
            score: score_number(rule.score),
            round_robin: (rule.selection == Selection::RoundRobin).into(),
            normalize: rule.normalize.into(),
            scale: rule.scale,
        })
    }

    /// What kernels take that compute logits alone.
    fn operands(&self) -> NativeParams {
        let Self { x, gate, gate_bias, logits, non_finite, tokens, width, experts, .. } = *self;
        NativeParams { x, gate, gate_bias, logits, non_finite, tokens, width, experts }
    }
}

/// A kernel's tile of logits.
struct Tile {
    kernels: [&'static str; 3],
    path: Path,
    tokens: usize,
    experts: usize,
    threads: u32,
    /// half cycles for one d, if the block has the multiprocessor to itself
    alone: usize,
    /// half cycles for one d, in which others wait for what this block uses
    shared: usize,
}

macro_rules! tile {
    ($name:literal, $tokens:literal x $experts:literal, $threads:literal, $alone:literal, $shared:literal) => {
        Tile {
            kernels: [
                concat!("route_gate_", $name, "_f32"),
                concat!("route_gate_", $name, "_bf16"),
                concat!("route_gate_", $name, "_f16"),
            ],
            path: Path(concat!("tile ", $name)),
            tokens: $tokens,
            experts: $experts,
            threads: $threads,
            alone: $alone,
            shared: $shared,
        }
    };
}

/// The cycles follow from a thread's sums and its loads from shared memory.
const TILES: [Tile; 7] = [
    tile!("128x64", 128 x 64, 128, 160, 136),
    tile!("64x64", 64 x 64, 128, 84, 70),
    tile!("64x32", 64 x 32, 64, 84, 35),
    tile!("32x32", 32 x 32, 64, 44, 18),
    tile!("64x8", 64 x 8, 64, 24, 12),
    tile!("16x16", 16 x 16, 64, 14, 8),
    tile!("8x8", 8 x 8, 64, 10, 8),
];

impl Tile {
    fn blocks(&self, dims: &RouteDims) -> usize {
        dims.tokens.div_ceil(self.tokens) * dims.experts.div_ceil(self.experts)
    }

    /// Half cycles for one d.
    fn time(&self, dims: &RouteDims, processors: u32) -> usize {
        let blocks = self.blocks(dims).div_ceil(processors.max(1) as usize);
        self.alone.max(self.shared * blocks)
    }

    /// The tile that is done first; the bits are equal.
    fn of(dims: &RouteDims, processors: u32) -> &'static Self {
        TILES.iter().min_by_key(|tile| tile.time(dims, processors)).unwrap_or(&TILES[0])
    }

    fn kernel<T: Float>(&self) -> &'static str {
        let [f32, bf16, f16] = self.kernels;
        match T::DTYPE {
            DType::Bf16 => bf16,
            DType::F16 => f16,
            _ => f32,
        }
    }
}

/// `Jitter` of `kernels/jitter.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct JitterParams {
    stamp: Address,
    amplitude: f32,
    on: u32,
}

impl JitterParams {
    pub(super) fn new(stamp: Address, jitter: Option<Jitter>) -> Self {
        let amplitude = jitter.map_or(0.0, |jitter| jitter.amplitude);
        Self { stamp, amplitude, on: jitter.is_some().into() }
    }
}

/// The number of a score function in `kernels/scores.cuh`.
pub(super) fn score_number(function: ScoreFunction) -> u32 {
    match function {
        ScoreFunction::Softmax => 0,
        ScoreFunction::Sigmoid => 2,
        _ => 1,
    }
}

/// Threads of a block that chooses, four warps.
const CHOOSERS: u32 = 128;

/// Blocks of the kernel that holds a token's choice scores in scratch memory, where registers do not hold them; 0 if they do.
pub(super) fn blocks_with_rows(dims: &RouteDims) -> usize {
    let limited = dims.rule.groups_kept < dims.rule.groups;
    let in_registers = dims.experts <= 512 && !(limited && dims.rule.groups > 32);
    if in_registers { 0 } else { dims.tokens.div_ceil(4).min(256) }
}

impl<T: Float> Kernel<Route<T>> for Cuda {
    fn scratch(&self, dims: &RouteDims) -> usize {
        blocks_with_rows(dims) * 4 * (dims.experts + dims.rule.groups) * size_of::<u32>()
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &RouteDims,
        args: RouteArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        // Kernels count in 32 bits.
        within(Route::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(Route::<T>::ID, "width", 0, i32::MAX as usize, dims.width)?;
        let call = Call::<Route<T>>::new(self, stream, dims, &args)?;
        let rows = call.scratch(scratch, Kernel::<Route<T>>::scratch(self, dims))?;
        let params = RouteParams::new(&call, dims, args, rows)?;
        let path = logits::<T>(&call, dims, &params)?;
        match blocks_with_rows(dims) {
            0 => call.launch("route_choose", Grid::new(dims.tokens.div_ceil(4), CHOOSERS), &params)?,
            blocks => call.launch("route_choose_any", Grid::new(blocks, CHOOSERS), &params)?,
        }
        Ok(path)
    }
}

/// Computes the logits and zeroes the count of those that are not finite, also if there are no tokens.
fn logits<T: Float>(
    call: &Call<'_, Route<T>>,
    dims: &RouteDims,
    params: &RouteParams,
) -> Result<Path, CudaError> {
    let native = &params.operands();
    if native::fits::<T>(call.cuda, dims, native) {
        return native::launch::<T>(call, dims, native);
    }
    let processors = call.cuda.facts().processors;
    let (tile, few) = (Tile::of(dims, processors), Few::of(dims, processors));
    if few::fits::<T>(call.cuda, dims, native) && few.time(dims, processors) <= tile.time(dims, processors) {
        return few.launch::<T>(call, dims, native);
    }
    call.launch(tile.kernel::<T>(), Grid::new(tile.blocks(dims).max(1), tile.threads), params)?;
    Ok(tile.path)
}
