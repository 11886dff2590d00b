//! RouteBwd: blocks of tokens; each token's gradients of scores meet in a row of scratch memory.

mod token;

use super::{Launch, path, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Float, Job, Shared, Simd, share};
use moe_core::ops::{RouteBwd, RouteBwdArgs, RouteBwdDims};
use moe_core::{Device, Op, Out, Path, View, ViewMut, check_offsets};
use std::ops::Range;
use token::{Balance, Space, Work};

/// Tokens of a task.
const TOKENS: usize = 64;

/// The gradients of a block of tokens.
struct Block<'a, 's> {
    work: &'a Work<'a>,
    tokens: Range<usize>,
    dlogits: &'a mut [f32],
    space: &'a mut Space<'s>,
}

impl Job for Block<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let experts = self.work.dims.experts;
        for (token, out) in self.tokens.zip(self.dlogits.chunks_exact_mut(experts)) {
            self.work.gradient(token, self.space, out);
        }
    }
}

impl<T: Float> Launch<RouteBwd<T>> for Cpu {
    fn scratch(&self, dims: &RouteBwdDims) -> usize {
        // Without tokens there are no ids to bound the number of slots.
        if dims.tokens > 0 { self.threads() * Space::bytes(dims) } else { 0 }
    }

    fn launch(
        &self,
        (): &(),
        dims: &RouteBwdDims,
        args: RouteBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<RouteBwd<T>>(self, dims, &args, scratch.len())?;
        let RouteBwdDims { tokens, experts, accumulate, .. } = *dims;
        let balance = args.aux.map(|aux| Balance {
            bounds: aux.sequences.host(),
            counts: aux.counts.host(),
            factors: aux.factors.host(),
        });
        if let Some(balance) = balance {
            check_offsets(RouteBwd::<T>::ID, balance.bounds, tokens)?;
        }
        let ids = args.ids.host();
        if let Some(load) = args.load.map(ViewMut::host) {
            if !accumulate {
                load.fill(0);
            }
            for id in ids {
                if let Some(load) = load.get_mut(*id as usize) {
                    *load = load.saturating_add(1);
                }
            }
        }
        let work = Work {
            dims,
            logits: args.logits.host(),
            ids,
            dweights: args.dweights.host(),
            rows: args.row_of_slot.map(View::host),
            balance,
            z_factor: args.z_factor.map(|factor| factor.host()[0]),
        };
        let dlogits = Shared::new(args.dlogits.host());
        let (unit, threads, each) =
            (self.unit(), self.threads(), if tokens > 0 { Space::bytes(dims) } else { 0 });
        self.enter(|| {
            share(threads, tokens.div_ceil(TOKENS), scratch.host(), each, |queue, memory| {
                let mut space = Space::new(dims, memory);
                for task in queue {
                    let tokens = task * TOKENS..tokens.min((task + 1) * TOKENS);
                    // SAFETY: each task has its own tokens.
                    let dlogits = unsafe { dlogits.part(tokens.start * experts..tokens.end * experts) };
                    unit.run(Block { work: &work, tokens, dlogits, space: &mut space });
                }
            });
        });
        Ok(path(self))
    }
}
