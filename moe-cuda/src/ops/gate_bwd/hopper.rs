//! GateBwd in bf16 on Hopper, by the experts' kernels: dlogits in three bf16 parts, which hold all of their bits, are rows of three
//! times as many columns. dx is ExpertUpBwd of one expert, whose weights are the gate three times; dgate is ExpertWgrad with chunks
//! of tokens as experts, each of whose rows of x meets three rows of parts.

use super::GateBwdParams;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::ops::Float;
use crate::ops::expert_wgrad::WgradParams;
use crate::ops::hopper::{self, Rows, SHARED_WGRAD, StoreParams};
use crate::tensor_map::TensorMap;
use moe_core::ops::{Activation, CHUNK, ExpertDims, GateBwd, GateBwdDims};
use moe_core::{DType, Path};

pub(super) const PATH: Path = Path("three parts, hopper 128x256");

/// bf16 parts that hold an f32.
const PARTS: usize = 3;
/// Tokens whose parts lie together in the order of the product over tokens: `DEPTH` of `kernels/hopper.cuh`.
const DEPTH: usize = 64;
/// Fewer tokens are not worth the launches.
const LEAST_TOKENS: usize = 256;
const THREADS: u32 = 256;

/// `PartsParams` of `kernels/gate_bwd.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct PartsParams {
    dlogits: Address,
    gate: Address,
    parts: Address,
    gates: Address,
    index: Address,
    bounds: Address,
    tokens: u32,
    width: u32,
    experts: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for PartsParams {}

/// Rows of the product over tokens, a whole number of stages.
fn rows(dims: &GateBwdDims) -> usize {
    dims.tokens.next_multiple_of(DEPTH).saturating_mul(PARTS)
}

/// Bytes of scratch memory: parts, gates, index, bounds; none where the kernels are not.
pub(super) fn layout<T: Float>(cuda: &Cuda, dims: &GateBwdDims) -> [usize; 4] {
    if !able::<T>(cuda) {
        return [0; 4];
    }
    let parts = |lines: usize| lines.saturating_mul(dims.experts).saturating_mul(PARTS * 2);
    let bounds = 3 + dims.tokens.div_ceil(CHUNK);
    [parts(dims.tokens), parts(dims.width), rows(dims).saturating_mul(4), bounds * 4]
}

fn able<T: Float>(cuda: &Cuda) -> bool {
    T::DTYPE == DType::Bf16 && cuda.facts().major == 9
}

/// Whether the sizes and addresses are such. Jitter's products are of values that bf16 does not hold.
pub(super) fn fits<T: Float>(cuda: &Cuda, dims: &GateBwdDims, params: &GateBwdParams) -> bool {
    let addresses = [params.dlogits, params.x, params.gate, params.dx];
    able::<T>(cuda)
        && dims.jitter.is_none()
        && dims.tokens >= LEAST_TOKENS
        && rows(dims) <= i32::MAX as usize
        && hopper::gathers(rows(dims), dims.experts)
        && hopper::fits::<T>(cuda, 1, [dims.width, dims.experts], &addresses)
}

/// Where scratch memory holds what the products read.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    parts: Address,
    gates: Address,
    index: Address,
    bounds: Address,
}

impl Operands {
    /// Makes them.
    pub(super) fn make<T: Float>(
        call: &Call<'_, GateBwd<T>>,
        params: &GateBwdParams,
        [parts, gates, index, bounds]: [Address; 4],
    ) -> Result<Self, CudaError> {
        let GateBwdParams { dlogits, gate, tokens, width, experts, .. } = *params;
        let params = PartsParams { dlogits, gate, parts, gates, index, bounds, tokens, width, experts };
        // A thread for eight values, unless that is more than fit at once.
        let blocks = (tokens as usize * experts as usize / 8).div_ceil(THREADS as usize);
        let resident = 8 * call.cuda.facts().processors as usize;
        call.launch("gate_bwd_parts", Grid::new(blocks.clamp(1, resident), THREADS), &params)?;
        Ok(Self { parts, gates, index, bounds })
    }

    pub(super) fn dx<T: Float>(
        self,
        call: &Call<'_, GateBwd<T>>,
        dims: &GateBwdDims,
        out: Address,
    ) -> Result<(), CudaError> {
        let GateBwdDims { tokens, width, experts, .. } = *dims;
        let depth = PARTS * experts;
        let activation = Activation::Linear;
        let (fan, rows, bias_shares) = (1, tokens, 1);
        let dims =
            ExpertDims { tokens, fan, rows, experts: 1, width, hidden: depth, activation, bias_shares };
        let rows = Rows::new(&dims, self.bounds, depth, width, 256);
        let rows = rows.packed::<T>(self.parts)?.across::<T>(self.gates)?;
        let params = StoreParams { rows, bias: 0, weights: 0, out_index: 0, out, bias_share: 1.0 };
        call.launch("expert_up_bwd_hopper_bf16", hopper::grid(call.cuda), &params)
    }

    /// The sums of `chunks` chunks from `first` on.
    pub(super) fn dgate<T: Float>(
        self,
        call: &Call<'_, GateBwd<T>>,
        dims: &GateBwdDims,
        params: &GateBwdParams,
        [first, chunks]: [usize; 2],
    ) -> Result<(), CudaError> {
        let GateBwdDims { tokens, width, experts, .. } = *dims;
        let params = WgradParams {
            packed: TensorMap::new::<T, 2>(params.x, [width, tokens], [DEPTH as u32, DEPTH as u32])?,
            gradient: TensorMap::new::<f32, 3>(params.parts, [width, experts, chunks], [32, 64, 1])?,
            source: self.parts,
            index: self.index,
            offsets: self.bounds + 4 * (2 + first as u64),
            dw: params.parts,
            tokens: (PARTS * tokens) as u32,
            fan: 1,
            rows: rows(dims) as u32,
            experts: chunks as u32,
            height: experts as u32,
            columns: width as u32,
            turned: 0,
            accumulate: 0,
            repeat: PARTS as u32,
        };
        let grid = hopper::grid(call.cuda).shared(SHARED_WGRAD);
        call.launch("expert_wgrad_hopper_bf16", grid, &params)
    }
}
