//! Decode: in one launch on Hopper and later, all blocks at once; elsewhere its four parts.

use super::Float;
use super::products::{Formula, Sizes};
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{Decode, DecodeArgs, DecodeDims, apart, apart_scratch};
use moe_core::{DType, Kernel, Op, Out, Path};

pub(super) static IMAGE: Image = image!("decode", [], single: ["decode_bf16": SHARED, "decode_f16": SHARED]);

/// Of `kernels/decode.cu`: threads of a block, its dynamic shared memory, most rows.
const BLOCK: u32 = 320;
const SHARED: u32 = 214 << 10;
const MOST_ROWS: usize = 512;

/// More rows than these per expert, on average, are faster in tiles.
const ROWS_OF_EXPERT: usize = 16;

/// Kernels count columns of all experts with rows in 32 bits.
const WIDEST: usize = 1 << 20;

/// `DecodeParams` of `kernels/decode.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DecodeParams {
    x: Address,
    ids: Address,
    weights: Address,
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
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for DecodeParams {}

/// Whether one launch computes these sizes, if addresses allow it.
pub(crate) fn fits(cuda: &Cuda, dtype: DType, dims: &DecodeDims) -> bool {
    let (of, facts) = (&dims.experts, cuda.facts());
    let typed = matches!(dtype, DType::Bf16 | DType::F16);
    let able = facts.major >= 9 && facts.shared >= SHARED && facts.cooperative;
    let lines = [of.width, of.hidden].iter().all(|len| (1..=WIDEST).contains(len) && len.is_multiple_of(8));
    let few = of.rows <= MOST_ROWS.min(ROWS_OF_EXPERT.saturating_mul(of.experts));
    typed && able && lines && few
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
        match together::<T>(self, stream, dims, &mut args)? {
            Some(path) => Ok(path),
            None => apart(self, stream, dims, args, scratch),
        }
    }
}

/// One launch, if it fits.
fn together<T: Float>(
    cuda: &Cuda,
    stream: &Stream,
    dims: &DecodeDims,
    args: &mut DecodeArgs<'_, Cuda, T>,
) -> Result<Option<Path>, CudaError> {
    let call = Call::<Decode<T>>::new(cuda, stream, dims, args)?;
    if !fits(cuda, T::DTYPE, dims) {
        return Ok(None);
    }
    let (mut base, mut scale) = ([0; 3], [0; 3]);
    for (at, term) in args.base.iter().enumerate() {
        if let Some(term) = term {
            base[at] = call.read("base", term.rows)?;
            scale[at] = call.read_some("base scale", term.scale)?;
        }
    }
    let params = DecodeParams {
        x: call.read("x", args.x)?,
        ids: call.read("ids", args.ids)?,
        weights: call.read("weights", args.weights)?,
        w13: call.weight("w13", args.w13)?,
        b13: call.read_some("b13", args.b13)?,
        w2: call.weight("w2", args.w2)?,
        b2: call.read_some("b2", args.b2)?,
        base,
        scale,
        counts: call.write("counts", args.counts.reborrow())?,
        dropped: call.write("dropped", args.dropped.reborrow())?,
        a: call.write("a", args.room.a.reborrow())?,
        out: call.write("out", args.out.reborrow())?,
        arrivals: stream.arrivals(),
        sizes: Sizes::of(Decode::<T>::ID, &dims.experts)?,
        formula: Formula::of(Decode::<T>::ID, dims.experts.activation)?,
        shares: dims.experts.bias_shares as f32,
        scores_first: dims.scores_first.into(),
    };
    let DecodeParams { x, w13, w2, a, .. } = params;
    if (x | w13 | w2 | a) % 16 != 0 {
        return Ok(None);
    }
    let kernel = if T::DTYPE == DType::Bf16 { "decode_bf16" } else { "decode_f16" };
    // As many blocks in every launch: they are counted over all launches.
    let grid = Grid::new(cuda.facts().processors as usize, BLOCK).shared(SHARED).together();
    call.launch(kernel, grid, &params)?;
    Ok(Some(Path("together")))
}
