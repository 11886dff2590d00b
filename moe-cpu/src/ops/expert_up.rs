//! ExpertUp: both halves of a task's columns are summed side by side, so that the activation reads them while they are near.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{
    Crew, Float, MAX_COLUMNS, Product, Rows, Scratch, Shared, Space, Task, apply, bytes, form, narrow, path,
    round, scale, swiglu, weights, widen,
};
use moe_core::ops::{Activation, ExpertDims, ExpertUp, ExpertUpArgs, PackUse};
use moe_core::{Device, Op, Out, Path, View, ViewMut};

/// What happens to a task's sums.
struct Finish<'a, T> {
    crew: Crew,
    dims: &'a ExpertDims,
    index: Option<&'a [u32]>,
    b13: Option<&'a [T]>,
    weights: Option<&'a [f32]>,
    h: Option<Shared<'a, T>>,
    a: Shared<'a, T>,
}

/// Bytes that [`Finish::run`] takes: both halves of the bias, and a row of the storage type.
fn extra<T: Float>() -> usize {
    bytes::<f32>(MAX_COLUMNS) + bytes::<T>(MAX_COLUMNS)
}

impl<T: Float> Finish<'_, T> {
    fn swiglu(&self, task: &Task, space: &mut Space<'_, T>) {
        let (hidden, up) = (self.dims.hidden, self.dims.up_width());
        let columns = &task.columns;
        for (at, row) in task.rows.clone().enumerate() {
            let part = |row: usize, half: usize| {
                row * up + half * hidden + columns.start..row * up + half * hidden + columns.end
            };
            let whole = |row: usize| row * hidden + columns.start..row * hidden + columns.end;
            if let Some(next) = task.soon(row) {
                self.a.near(self.crew.unit, whole(next));
                self.h.iter().for_each(|h| (0..2).for_each(|half| h.near(self.crew.unit, part(next, half))));
            }
            // SAFETY: each task has its own rows and columns of both halves.
            let h = self.h.as_ref().map(|h| unsafe { [h.part(part(row, 0)), h.part(part(row, 1))] });
            // SAFETY: as above.
            let a = unsafe { self.a.part(whole(row)) };
            let sums = space.row(at).map(|sums| &*sums);
            swiglu::Up { sums, h, a }.run_on(self.crew.unit);
        }
    }

    fn run(&self, task: &Task, space: &mut Space<'_, T>, mut scratch: Scratch<'_>) {
        let (unit, hidden, up) = (self.crew.unit, self.dims.hidden, self.dims.up_width());
        let (start, len) = (task.columns.start, task.columns.len());
        let (bias, room) = (scratch.take::<f32>(MAX_COLUMNS), scratch.take::<T>(MAX_COLUMNS));
        if let Some(b13) = self.b13 {
            for half in 0..up / hidden {
                let from = &b13[task.group * up + half * hidden + start..][..len];
                widen(unit, from, &mut bias[half * len..]);
            }
        }
        // Without bias and weights a row of SwiGLU is one pass.
        let plain = self.b13.is_none() && self.weights.is_none();
        if plain && self.dims.activation == Activation::SwiGlu && len.is_multiple_of(swiglu::EVEN) {
            return self.swiglu(task, space);
        }
        let bias = |half: usize| self.b13.is_some().then(|| &bias[half * len..][..len]);
        for (at, row) in task.rows.clone().enumerate() {
            let mut sums = space.row(at);
            for (half, sums) in sums.iter_mut().enumerate().filter(|(_, sums)| !sums.is_empty()) {
                if let (Some(bias), None) = (bias(half), self.weights) {
                    scale(unit, 1.0, sums, Some(bias));
                }
                if let Some(h) = &self.h {
                    let place = row * up + half * hidden + start;
                    // SAFETY: each task has its own rows and columns of both halves.
                    let h = unsafe { h.part(place..place + len) };
                    narrow(unit, sums, h);
                }
                round(unit, sums, room);
                if let Some(weights) = self.weights {
                    let slot = self.index.map_or(row, |index| index[row] as usize);
                    scale(unit, weights[slot], sums, bias(half));
                }
            }
            let [gate, second] = sums;
            apply(unit, self.dims.activation, gate, second);
            let place = row * hidden + start;
            // SAFETY: as above.
            narrow(unit, gate, unsafe { self.a.part(place..place + len) });
        }
    }
}

impl<T: Float> Launch<ExpertUp<T>> for Cpu {
    fn scratch(&self, _: &ExpertDims) -> usize {
        Crew::of(self).bytes::<T>(extra::<T>())
    }

    fn launch(
        &self,
        (): &(),
        dims: &ExpertDims,
        args: ExpertUpArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<ExpertUp<T>>(self, dims, &args, scratch.len())?;
        let (crew, op, pack) = (Crew::of(self), ExpertUp::<T>::ID, dims.pack(PackUse::Up));
        let (offsets, index) = (args.offsets.host(), args.index.map(View::host));
        dims.check_values(op, offsets, index)?;
        let weights = weights(crew.unit, (op, "w13"), args.w13, &pack)?;
        let left = Rows { values: args.x.host(), width: dims.width, index, fan: dims.fan };
        let product = Product { unit: crew.unit, left, weights, size: form(&pack).0 };
        let finish = Finish {
            crew,
            dims,
            index,
            b13: args.b13.map(View::host),
            weights: args.weights.map(View::host),
            h: args.h.map(|h| Shared::new(ViewMut::host(h))),
            a: Shared::new(args.a.host()),
        };
        let parts = if dims.activation.gated() { 2 } else { 1 };
        let scratch = (scratch.host(), extra::<T>());
        self.enter(|| {
            crew.grouped(&product, offsets, (parts, dims.hidden), scratch, |task, space, scratch| {
                finish.run(task, space, scratch);
            });
        });
        Ok(path(crew.unit, &product.weights))
    }
}
