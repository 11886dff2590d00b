//! Decode: in one launch on Hopper and later, all blocks at once; elsewhere its parts.

use super::Float;
use super::products::{Formula, Sizes};
use super::route::{RouteParams, blocks_with_rows};
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{
    Decode, DecodeArgs, DecodeDims, GateMath, Route, RouteDims, Weight, apart, apart_scratch,
};
use moe_core::{DType, Elem, In, Kernel, Op, Out, Path, Scalar};

pub(super) static IMAGE: Image = image!("decode", [], single: ["decode_bf16": SHARED, "decode_f16": SHARED]);

/// Of `kernels/decode.cu`: threads of a block, its dynamic shared memory, most rows.
const BLOCK: u32 = 320;
const SHARED: u32 = 214 << 10;
const MOST_ROWS: usize = 512;

/// Of `kernels/decode_route.cuh`: most tokens, experts and logits of a block, and the bytes that it has for their lines.
const ROUTED_TOKENS: usize = 8;
const COLUMNS: usize = 8;
const CHAINS: usize = 32;
const LINES: usize = 128 << 10;

/// More rows than these per expert, on average, are faster in tiles.
const ROWS_OF_EXPERT: usize = 16;

/// Kernels count columns of all experts with rows in 32 bits.
const WIDEST: usize = 1 << 20;

/// `Gate` of `kernels/decode_route.cuh`: who routes, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Router {
    Apart = 0,
    Exact = 1,
    Native = 2,
}

impl Router {
    /// In the same launch, if each block can have the lines of all tokens and of its experts at once.
    fn of(cuda: &Cuda, dims: &RouteDims, gate: Address) -> Self {
        let RouteDims { tokens, width, experts, rule, .. } = *dims;
        let own = experts.div_ceil(cuda.facts().processors.max(1) as usize);
        let bytes = (tokens + own) * (width.next_multiple_of(32) + 4) * size_of::<f32>();
        let few = tokens <= ROUTED_TOKENS && own <= COLUMNS && tokens * own <= CHAINS;
        let able = rule.jitter.is_none() && blocks_with_rows(dims) == 0 && gate.is_multiple_of(16);
        match rule.gate {
            _ if !(few && able && bytes <= LINES) => Self::Apart,
            GateMath::Native => Self::Native,
            _ => Self::Exact,
        }
    }
}

/// `DecodeParams` of `kernels/decode.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DecodeParams {
    route: RouteParams,
    w13: Address,
    b13: Address,
    w2: Address,
    b2: Address,
    base: [Address; 3],
    scale: [Address; 3],
    counts: Address,
    dropped: Address,
    a: Address,
    out: Address,
    arrivals: Address,
    sizes: Sizes,
    formula: Formula,
    shares: f32,
    scores_first: u32,
    router: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for DecodeParams {}

/// Whether one launch computes the experts of these sizes, if addresses allow it.
pub(crate) fn fits(cuda: &Cuda, dtype: DType, dims: &DecodeDims) -> bool {
    let (of, facts) = (&dims.experts, cuda.facts());
    let typed = matches!(dtype, DType::Bf16 | DType::F16);
    let able = facts.major >= 9 && facts.shared >= SHARED && facts.cooperative;
    let lines = [of.width, of.hidden].iter().all(|len| (1..=WIDEST).contains(len) && len.is_multiple_of(8));
    let few = of.rows <= MOST_ROWS.min(ROWS_OF_EXPERT.saturating_mul(of.experts));
    typed && able && lines && few
}

fn address<T: Elem>(view: In<'_, Cuda, T>) -> Address {
    let (buffer, range) = view.parts();
    buffer.address(range.start)
}

/// Where weights as they are begin; what is packed is refused later.
fn weight_address<T: Scalar>(weight: &Weight<'_, Cuda, T>) -> Address {
    match weight {
        Weight::Plain(plain) => address(*plain),
        Weight::Packed(packed) => address(*packed),
    }
}

impl<T: Float> Kernel<Decode<T>> for Cuda {
    fn scratch(&self, dims: &DecodeDims) -> usize {
        apart_scratch::<T, Self>(self, dims)
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &DecodeDims,
        mut args: DecodeArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        Decode::<T>::check::<Self>(dims, &args)?;
        let lines = address(args.route.x) | weight_address(&args.w13) | weight_address(&args.w2);
        let aligned = (lines | address(args.room.a.read())).is_multiple_of(16);
        if !fits(self, T::DTYPE, dims) || !aligned {
            return apart(self, stream, dims, args, scratch);
        }
        let route = dims.route();
        let router = Router::of(self, &route, weight_address(&args.route.gate));
        if router == Router::Apart {
            Kernel::<Route<T>>::launch(self, stream, &route, args.route.reborrow(), scratch)?;
        }
        together::<T>(self, stream, dims, args, router)?;
        Ok(Path(if router == Router::Apart { "route, together" } else { "together" }))
    }
}

/// The launch.
fn together<T: Float>(
    cuda: &Cuda,
    stream: &Stream,
    dims: &DecodeDims,
    args: DecodeArgs<'_, Cuda, T>,
    router: Router,
) -> Result<(), CudaError> {
    let call = Call::<Decode<T>>::new(cuda, stream, dims, &args)?;
    let (mut base, mut scale) = ([0; 3], [0; 3]);
    for (at, term) in args.base.iter().enumerate() {
        if let Some(term) = term {
            base[at] = call.read("base", term.rows)?;
            scale[at] = call.read_some("base scale", term.scale)?;
        }
    }
    let params = DecodeParams {
        route: RouteParams::new(&call, &dims.route(), args.route, 0)?,
        w13: call.weight("w13", args.w13)?,
        b13: call.read_some("b13", args.b13)?,
        w2: call.weight("w2", args.w2)?,
        b2: call.read_some("b2", args.b2)?,
        base,
        scale,
        counts: call.write("counts", args.counts)?,
        dropped: call.write("dropped", args.dropped)?,
        a: call.write("a", args.room.a)?,
        out: call.write("out", args.out)?,
        arrivals: stream.arrivals(),
        sizes: Sizes::of(Decode::<T>::ID, &dims.experts)?,
        formula: Formula::of(Decode::<T>::ID, dims.experts.activation)?,
        shares: dims.experts.bias_shares as f32,
        scores_first: dims.scores_first.into(),
        router: router as u32,
    };
    let kernel = if T::DTYPE == DType::Bf16 { "decode_bf16" } else { "decode_f16" };
    // As many blocks in every launch: they are counted over all launches.
    let grid = Grid::new(cuda.facts().processors as usize, BLOCK).shared(SHARED).together();
    call.launch(kernel, grid, &params)
}
