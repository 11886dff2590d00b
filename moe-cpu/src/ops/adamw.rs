//! AdamW: blocks of elements, in plain loops that the compiler vectorises. Nothing is fused, as in the reference.

use super::{Launch, path, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{Float, Job, Shared, Simd, narrow, share, widen};
use moe_core::ops::{ADAMW_SETTINGS, AdamW, AdamWArgs, AdamWDims};
use moe_core::{Device, Out, Path, ViewMut};

/// Elements of a task.
const TASK: usize = 16 * BLOCK;
/// Elements that are widened at a time.
const BLOCK: usize = 512;

/// One step over a block.
struct Step<'a> {
    settings: &'a [f32],
    grad: &'a [f32],
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Job for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let &[decay, beta1, beta2, eps, rate, root, scale, _] = self.settings else { return };
        let len = self.grad.len();
        let (w, m, v) = (&mut self.w[..len], &mut self.m[..len], &mut self.v[..len]);
        for i in 0..len {
            let g = scale * self.grad[i];
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            w[i] = w[i] - decay * w[i] - rate * (m[i] / (v[i].sqrt() / root + eps));
        }
    }
}

impl<T: Float> Launch<AdamW<T>> for Cpu {
    fn launch(
        &self,
        (): &(),
        dims: &AdamWDims,
        args: AdamWArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<AdamW<T>>(self, dims, &args, scratch.len())?;
        let (unit, len) = (self.unit(), dims.len);
        let settings = &args.settings.host()[..ADAMW_SETTINGS];
        let (grad, w) = (args.grad.host(), Shared::new(args.w.host()));
        let (m, v) = (Shared::new(args.m.host()), Shared::new(args.v.host()));
        let master = args.master.map(|master| Shared::new(ViewMut::host(master)));
        let block = |start: usize| {
            let range = start..len.min(start + BLOCK);
            // SAFETY: each block is in one task.
            let (w, m, v) = unsafe { (w.part(range.clone()), m.part(range.clone()), v.part(range.clone())) };
            let mut room = [0.0; BLOCK];
            let wide = match &master {
                // SAFETY: as above.
                Some(master) => unsafe { master.part(range.clone()) },
                None => {
                    widen(unit, w, &mut room);
                    &mut room[..range.len()]
                }
            };
            unit.run(Step { settings, grad: &grad[range], w: wide, m, v });
            narrow(unit, wide, w);
        };
        self.enter(|| {
            share(self.threads(), len.div_ceil(TASK), &mut [], 0, |queue, _| {
                queue.for_each(|task| {
                    (task * TASK..len.min((task + 1) * TASK)).step_by(BLOCK).for_each(block)
                });
            });
        });
        Ok(path(self))
    }
}
