//! GateBwd: two products. dx sums over experts, with the gate turned into panels of columns; dgate sums over tokens,
//! with x brought into panels a block of tokens at a time. Every element is one [`Chain`](crate::chain::Chain) per
//! 1024 tokens.

mod turn;
mod work;

use super::{Launch, path, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Float, SLACK, Scratch, Shared, bytes, share, weights};
use moe_core::ops::{GateBwd, GateBwdArgs, GateBwdDims, RouteDims, RouteRule, Stamp};
use moe_core::{Device, Op, Out, Path, ViewMut};
use turn::{turn, turned};
use work::{Space, Work};

/// The route whose gradient this is: its gate has the same packed form.
fn forward(dims: &GateBwdDims) -> RouteDims {
    let GateBwdDims { tokens, width, experts, .. } = *dims;
    RouteDims { tokens, width, experts, top_k: 1, rule: RouteRule::default() }
}

impl<T: Float> Launch<GateBwd<T>> for Cpu {
    fn scratch(&self, dims: &GateBwdDims) -> usize {
        let unit = self.unit();
        SLACK + bytes::<f32>(turned(unit, dims)) + self.threads() * Space::bytes(unit, dims)
    }

    fn launch(
        &self,
        (): &(),
        dims: &GateBwdDims,
        args: GateBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<GateBwd<T>>(self, dims, &args, scratch.len())?;
        let (unit, threads, each) = (self.unit(), self.threads(), Space::bytes(self.unit(), dims));
        let pack = forward(dims).pack();
        let plain = weights(unit, (GateBwd::<T>::ID, "gate"), args.gate, &pack)?;
        let mut scratch = Scratch::new(scratch.host());
        let gate = scratch.take::<f32>(turned(unit, dims));
        let stamp = args.stamp.and_then(|words| words.host().try_into().ok());
        self.enter(|| {
            turn(unit, threads, dims, &plain, gate);
            let work = Work {
                unit,
                dims,
                dlogits: args.dlogits.host(),
                x: args.x.host(),
                gate,
                stamp: stamp.map_or_else(Stamp::default, Stamp::of),
                dx: Shared::new(args.dx.host()),
                dgate: Shared::new(args.dgate.host()),
                dbias: args.dbias.map(|dbias| Shared::new(ViewMut::host(dbias))),
            };
            share(threads, work.tasks(), scratch.rest(), each, |queue, memory| {
                let mut space = Space::new(unit, dims, memory);
                queue.for_each(|task| work.run(task, &mut space));
            });
        });
        Ok(path(self))
    }
}
