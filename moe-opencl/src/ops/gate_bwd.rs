//! GateBwd: two products in tiles, a group each.

use super::Float;
use super::route::{CHAIN_ITEMS, JitterParams};
use crate::call::{Call, Grid, Params};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{FLOATS, Source, source};
use crate::stream::Stream;
use moe_core::ops::{GateBwd, GateBwdArgs, GateBwdDims};
use moe_core::{Kernel, Op, Out, Path, within};

pub(super) static SOURCE: Source = source!("gate_bwd", ["jitter", "chains"], FLOATS);

/// `GateBwdParams` of `kernels/gate_bwd.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct GateBwdParams {
    jitter: JitterParams,
    tokens: u32,
    width: u32,
    experts: u32,
    accumulate: u32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for GateBwdParams {}

/// Rows and columns of a tile.
const TILE: usize = 32;

impl<T: Float> Kernel<GateBwd<T>> for OpenCl {
    fn launch(
        &self,
        stream: &Stream,
        dims: &GateBwdDims,
        args: GateBwdArgs<'_, Self, T>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        // Kernels count in 32 bits.
        within(GateBwd::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(GateBwd::<T>::ID, "width", 0, i32::MAX as usize, dims.width)?;
        within(GateBwd::<T>::ID, "experts", 0, i32::MAX as usize, dims.experts)?;
        let GateBwdDims { tokens, width, experts, jitter, accumulate } = *dims;
        let call = Call::<GateBwd<T>>::new(self, stream, (&SOURCE, T::DTYPE), dims, &args)?;
        let bias = args.dbias.is_some();
        let (dlogits, x) = (call.read("dlogits", args.dlogits)?, call.read("x", args.x)?);
        let gate = call.weight("gate", args.gate)?;
        let stamp = call.read_some("stamp", args.stamp)?;
        let (dx, dgate) = (call.write("dx", args.dx)?, call.write("dgate", args.dgate)?);
        let dbias = call.write_some("dbias", args.dbias)?;
        let params = GateBwdParams {
            jitter: JitterParams::new(jitter),
            tokens: tokens as u32,
            width: width as u32,
            experts: experts as u32,
            accumulate: accumulate.into(),
        };
        let tiles = |rows: usize, columns: usize| {
            Grid::of([rows.div_ceil(TILE), columns.div_ceil(TILE)], [CHAIN_ITEMS, 1])
        };
        call.launch("gate_bwd_input", tiles(tokens, width), &[dlogits, gate, stamp, dx], &params)?;
        let columns = width + usize::from(bias);
        let places = [dlogits, x, stamp, dgate, dbias];
        call.launch("gate_bwd_weights", tiles(experts, columns), &places, &params)?;
        Ok(Path("tile 32x32"))
    }
}
