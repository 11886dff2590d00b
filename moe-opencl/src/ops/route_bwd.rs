//! RouteBwd: scores, then a team per token; and a group per expert for what balancing looks at.

use super::Float;
use super::scores::{self, by_team, loss_score, score_number};
use crate::call::{Call, Grid, Params, Place};
use crate::device::OpenCl;
use crate::error::OpenClError;
use crate::program::{NO_STORAGE, Source, source};
use crate::stream::Stream;
use moe_core::ops::{RouteBwd, RouteBwdArgs, RouteBwdDims};
use moe_core::{DType, Kernel, Op, Out, Path, within};

pub(super) static SOURCE: Source = source!("route_bwd", ["exact", "team"], NO_STORAGE);

/// `RouteBwdParams` of `kernels/route_bwd.cl`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouteBwdParams {
    tokens: u32,
    experts: u32,
    top_k: u32,
    sequences: u32,
    function: u32,
    normalize: u32,
    accumulate: u32,
    scale: f32,
}

// SAFETY: the kernel's struct has the same fields.
unsafe impl Params for RouteBwdParams {}

/// Work items of a group that counts an expert's slots.
const ITEMS: usize = 64;

impl<T: Float> Kernel<RouteBwd<T>> for OpenCl {
    fn scratch(&self, dims: &RouteBwdDims) -> usize {
        // Scores, and four sums per token.
        dims.tokens.saturating_mul(dims.experts.saturating_add(4)).saturating_mul(size_of::<f32>())
    }

    fn launch(
        &self,
        stream: &Stream,
        dims: &RouteBwdDims,
        args: RouteBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, OpenClError> {
        // Kernels count in 32 bits.
        within(RouteBwd::<T>::ID, "tokens", 0, i32::MAX as usize, dims.tokens)?;
        within(RouteBwd::<T>::ID, "top_k", 0, i32::MAX as usize, dims.top_k)?;
        let RouteBwdDims { tokens, experts, top_k, sequences, rule, accumulate } = *dims;
        let scores_first = (&scores::SOURCE, DType::U32);
        let mut call = Call::<RouteBwd<T>>::new(self, stream, scores_first, dims, &args)?;
        let scores = call.scratch(scratch, Kernel::<RouteBwd<T>>::scratch(self, dims))?.of::<f32>();
        let sums = scores.after(tokens * experts);
        let (logits, ids) = (call.read("logits", args.logits)?, call.read("ids", args.ids)?);
        let dweights = call.read("dweights", args.dweights)?;
        let row_of_slot = call.read_some("row_of_slot", args.row_of_slot)?;
        let [bounds, counts, factors] = match args.aux {
            None => [Place::NONE; 3],
            Some(aux) => [
                call.read("sequences", aux.sequences)?,
                call.read("counts", aux.counts)?,
                call.read("factors", aux.factors)?,
            ],
        };
        let z_factor = call.read_some("z_factor", args.z_factor)?;
        let load = args.load.map(|load| call.write("load", load)).transpose()?;
        let dlogits = call.write("dlogits", args.dlogits)?;
        let params = RouteBwdParams {
            tokens: tokens as u32,
            experts: experts as u32,
            top_k: top_k as u32,
            sequences: sequences as u32,
            function: score_number(rule.score),
            normalize: rule.normalize.into(),
            accumulate: accumulate.into(),
            scale: rule.scale,
        };

        let of_scores = [logits, scores, sums, Place::NONE];
        scores::launch(&call, (tokens, experts), loss_score(rule.score), of_scores)?;
        call.turn_to(self, (&SOURCE, DType::U32))?;
        #[rustfmt::skip]
        let of_tokens = [
            logits, scores, sums, ids, dweights, row_of_slot, bounds, counts, factors, z_factor, dlogits,
        ];
        call.launch("route_bwd", by_team(tokens), &of_tokens, &params)?;
        if let Some(load) = load {
            call.launch("route_load", Grid::new(experts, ITEMS), &[ids, load], &params)?;
        }
        Ok(Path("general"))
    }
}
