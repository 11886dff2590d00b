//! SumSquares: a block per part of the values, then one block over the parts.

use super::Float;
use crate::call::{Address, Call, Grid, Params};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::image::{Image, image};
use crate::stream::Stream;
use moe_core::ops::{SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{Kernel, Out, Path};

pub(super) static IMAGE: Image =
    image!("sum_squares", [], single: ["sum_squares_part": 0, "sum_squares_total": 0]);

const THREADS: u32 = 256;
const TOTAL_THREADS: u32 = 1024;
/// Values of a part.
const PART: usize = 16384;

/// `SumSquaresParams` of `kernels/sum_squares.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SumSquaresParams {
    values: Address,
    sum: Address,
    parts: Address,
    len: u64,
    part_count: u64,
    accumulate: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for SumSquaresParams {}

impl<T: Float> Kernel<SumSquares<T>> for Cuda {
    fn scratch(&self, dims: &SumSquaresDims) -> usize {
        dims.len.div_ceil(PART) * size_of::<f32>()
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &SumSquaresDims,
        args: SumSquaresArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CudaError> {
        let call = Call::<SumSquares<T>>::new(self, stream, dims, &args)?;
        let parts = dims.len.div_ceil(PART);
        let params = SumSquaresParams {
            values: call.read("values", args.values)?,
            sum: call.write("sum", args.sum)?,
            parts: call.scratch(scratch, Kernel::<SumSquares<T>>::scratch(self, dims))?,
            len: dims.len as u64,
            part_count: parts as u64,
            accumulate: u32::from(dims.accumulate),
        };
        call.launch("sum_squares_part", Grid::new(parts, THREADS), &params)?;
        call.launch("sum_squares_total", Grid::new(1, TOTAL_THREADS), &params)?;
        Ok(Path("parts"))
    }
}
