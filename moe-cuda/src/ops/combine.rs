//! Combine: a thread per 16 bytes of a token's row, in one block, or in several if there are few tokens.

use super::Float;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image, kernel};
use crate::stream::Stream;
use moe_core::ops::{Combine, CombineArgs, CombineDims};
use moe_core::{Kernel, Op, Out, Path, within};

pub(super) static IMAGE: Image = image!("combine", ["combine": 0]);

/// `CombineParams` of `kernels/combine.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CombineParams {
    y: Address,
    row_of_slot: Address,
    weights: Address,
    base: [Address; 3],
    scale: [Address; 3],
    out: Address,
    top_k: u32,
    width: u32,
    rows: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for CombineParams {}

impl<T: Float> Kernel<Combine<T>> for Cuda {
    fn launch(
        &self,
        stream: &Stream,
        dims: &CombineDims,
        args: CombineArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        // Kernels count in 32 bits.
        within(Combine::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(Combine::<T>::ID, "width", 0, i32::MAX as usize, dims.width)?;
        within(Combine::<T>::ID, "top_k", 0, i32::MAX as usize, dims.top_k)?;
        let call = Call::<Combine<T>>::new(self, stream, dims, &args)?;
        let (mut base, mut scale) = ([0; 3], [0; 3]);
        for (at, term) in args.base.into_iter().enumerate() {
            if let Some(term) = term {
                base[at] = call.read("base", term.rows)?;
                scale[at] = call.read_some("base scale", term.scale)?;
            }
        }
        let params = CombineParams {
            y: call.read("y", args.y)?,
            row_of_slot: call.read("row_of_slot", args.row_of_slot)?,
            weights: call.read_some("weights", args.weights)?,
            base,
            scale,
            out: call.write("out", args.out)?,
            top_k: dims.top_k as u32,
            width: dims.width as u32,
            rows: dims.rows as u32,
        };
        let blocks = blocks_of_token(dims, self.facts().processors as usize);
        let grid = Grid::of([dims.tokens, blocks, 1], THREADS / blocks as u32);
        call.launch(kernel!(T, "combine"), grid, &params)?;
        Ok(Path("general"))
    }
}

const THREADS: u32 = 256;

/// As many as keep all multiprocessors busy, of one warp at least.
fn blocks_of_token(dims: &CombineDims, processors: usize) -> usize {
    let most = THREADS as usize / 32;
    (1..=most)
        .rev()
        .find(|blocks| most.is_multiple_of(*blocks) && blocks * dims.tokens <= processors)
        .unwrap_or(1)
}
