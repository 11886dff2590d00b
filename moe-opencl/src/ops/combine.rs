//! Combine: a work item per four columns of a token.

use super::{Float, by_row};
use crate::call::{Call, Params, Place};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{FLOATS, Source, source};
use crate::stream::Stream;
use moe_core::ops::{Combine, CombineArgs, CombineDims};
use moe_core::{Kernel, Op, Out, Path, within};

pub(super) static SOURCE: Source = source!("combine", [], FLOATS);

/// `CombineParams` of `kernels/combine.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CombineParams {
    tokens: u32,
    top_k: u32,
    width: u32,
    rows: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for CombineParams {}

impl<T: Float> Kernel<Combine<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &CombineDims,
        args: CombineArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        // Kernels count in 32 bits.
        within(Combine::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(Combine::<T>::ID, "width", 0, i32::MAX as usize, dims.width)?;
        within(Combine::<T>::ID, "top_k", 0, i32::MAX as usize, dims.top_k)?;
        let call = Call::<Combine<T>>::new(self, stream, (&SOURCE, T::DTYPE), dims, &args)?;
        let mut base = [Place::NONE; 6];
        for (places, term) in base.chunks_exact_mut(2).zip(args.base) {
            if let Some(term) = term {
                places[0] = call.read("base", term.rows)?;
                places[1] = call.read_some("base scale", term.scale)?;
            }
        }
        let [base0, scale0, base1, scale1, base2, scale2] = base;
        let (y, rows) = (call.read("y", args.y)?, call.read("row_of_slot", args.row_of_slot)?);
        let (weights, out) = (call.read_some("weights", args.weights)?, call.write("out", args.out)?);
        let places = [y, rows, weights, base0, scale0, base1, scale1, base2, scale2, out];
        let params = CombineParams {
            tokens: dims.tokens as u32,
            top_k: dims.top_k as u32,
            width: dims.width as u32,
            rows: dims.rows as u32,
        };
        call.launch("combine", by_row(self.facts(), dims.tokens, dims.width), &places, &params)?;
        Ok(Path("general"))
    }
}
