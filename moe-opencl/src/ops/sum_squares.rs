//! SumSquares: a group per part of the values, then one group over the parts.

use super::Float;
use crate::call::{Call, Grid, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{NO_STORAGE, Source, source};
use crate::stream::Stream;
use moe_core::ops::{SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{DType, Kernel, Out, Path};

pub(super) static SOURCE: Source = source!("sum_squares", [], NO_STORAGE);

/// Work items of a group.
const ITEMS: usize = 64;
/// Values of a part.
const PART: usize = 16384;

/// `SumSquaresParams` of `kernels/sum_squares.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SumSquaresParams {
    len: u64,
    parts: u64,
    accumulate: u32,
    unused: u32,
}

// SAFETY: the kernel's struct has the same fields, and ends in as many bytes of padding.
unsafe impl Params for SumSquaresParams {}

impl<T: Float> Kernel<SumSquares<T>> for OpenCl {
    fn scratch(&self, dims: &SumSquaresDims) -> usize {
        dims.len.div_ceil(PART) * size_of::<f32>()
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &SumSquaresDims,
        args: SumSquaresArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        let call = Call::<SumSquares<T>>::new(self, stream, (&SOURCE, DType::U32), dims, &args)?;
        let parts = dims.len.div_ceil(PART);
        let sums = call.scratch(scratch, Kernel::<SumSquares<T>>::scratch(self, dims))?.of::<f32>();
        let (values, sum) = (call.read("values", args.values)?, call.write("sum", args.sum)?);
        let (len, accumulate) = (dims.len as u64, u32::from(dims.accumulate));
        let params = SumSquaresParams { len, parts: parts as u64, accumulate, unused: 0 };
        call.launch("sum_squares_part", Grid::new(parts, ITEMS), &[values, sums], &params)?;
        call.launch("sum_squares_total", Grid::new(1, ITEMS), &[sums, sum], &params)?;
        Ok(Path("parts"))
    }
}
