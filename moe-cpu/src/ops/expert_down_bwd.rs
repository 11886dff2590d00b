//! ExpertDownBwd: the product with w2 as it lies, then the activation's gradient over h.
//!
//! ds is a sum over all columns, which fall into several tasks. Each task leaves one partial sum for every [`CHUNK`] columns
//! of a row; they are added in order afterwards, so that ds does not depend on how the columns were dealt out.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{
    CHUNK, Crew, Float, MAX_COLUMNS, Product, Rows, SLACK, Scratch, Shared, Space, Task, bytes, dot, form,
    gradient, narrow, path, scale, share, swiglu, weights, widen,
};
use core::ops::Range;
use moe_core::ops::{Activation, ExpertDims, ExpertDownBwd, ExpertDownBwdArgs, PackUse};
use moe_core::{Device, Op, Out, Path, View, ViewMut};

/// Rows whose ds is added up by one task.
const SUM_ROWS: usize = 64;
/// Lines of a task's columns that [`Finish::run`] works in: h, z and bias in halves, and the outer gradient.
const LINES: usize = 7;

/// What happens to a task's sums, and to the scores' gradient at the end.
struct Finish<'a, T> {
    crew: Crew,
    dims: &'a ExpertDims,
    dout: Rows<'a, T>,
    offsets: &'a [u32],
    b2: Option<&'a [T]>,
    b13: Option<&'a [T]>,
    weights: Option<&'a [f32]>,
    scores_first: bool,
    h: Shared<'a, T>,
    a: Shared<'a, T>,
    /// (rows, chunks), if ds is wanted
    partial: Option<Shared<'a, f32>>,
}

fn chunks(dims: &ExpertDims) -> usize {
    dims.hidden.div_ceil(CHUNK).max(1)
}

/// Bytes of a thread's own: lines of a task's columns, or a row of dout and one of the bias.
fn extra(dims: &ExpertDims) -> usize {
    (LINES * bytes::<f32>(MAX_COLUMNS)).max(2 * bytes::<f32>(dims.width))
}

impl<T: Float> Finish<'_, T> {
    fn slot(&self, row: usize) -> usize {
        self.dout.index.map_or(row, |index| index[row] as usize)
    }

    fn swiglu(&self, task: &Task, space: &mut Space<'_, T>) {
        let (hidden, up) = (self.dims.hidden, self.dims.up_width());
        let columns = &task.columns;
        let mut unwanted = [0.0; MAX_COLUMNS / CHUNK];
        for (at, row) in task.rows.clone().enumerate() {
            let part = |row: usize, half: usize| {
                row * up + half * hidden + columns.start..row * up + half * hidden + columns.end
            };
            let whole = |row: usize| row * hidden + columns.start..row * hidden + columns.end;
            if let Some(next) = task.soon(row) {
                (0..2).for_each(|half| self.h.near(self.crew.unit, part(next, half)));
                self.a.near(self.crew.unit, whole(next));
            }
            let (first, count) =
                (row * chunks(self.dims) + columns.start / CHUNK, columns.len().div_ceil(CHUNK));
            // SAFETY: each task has its own rows, and its own columns of both halves and chunks of columns.
            let (h, a, partial) = unsafe {
                (
                    [self.h.part(part(row, 0)), self.h.part(part(row, 1))],
                    self.a.part(whole(row)),
                    self.partial.as_ref().map(|partial| partial.part(first..first + count)),
                )
            };
            let [da, _] = space.row(at);
            let score = self.weights.map_or(1.0, |weights| weights[self.slot(row)]);
            let partial = partial.unwrap_or(&mut unwanted[..count]);
            swiglu::Down { da, score, h, a, partial, chunk: CHUNK }.run_on(self.crew.unit);
        }
    }

    fn run(&self, task: &Task, space: &mut Space<'_, T>, mut scratch: Scratch<'_>) {
        let (unit, hidden, up) = (self.crew.unit, self.dims.hidden, self.dims.up_width());
        let (start, len) = (task.columns.start, task.columns.len());
        let even = len.is_multiple_of(swiglu::EVEN);
        if even && !self.scores_first && self.dims.activation == Activation::SwiGlu {
            return self.swiglu(task, space);
        }
        let halves = up / hidden;
        let lens = [len, if halves == 2 { len } else { 0 }];
        let mut line = |len: usize| &mut scratch.take::<f32>(MAX_COLUMNS)[..len];
        let (h, mut z, mut bias, outer) =
            (lens.map(&mut line), lens.map(&mut line), lens.map(&mut line), line(len));
        if let Some(b13) = self.b13 {
            for (half, bias) in bias.iter_mut().enumerate().take(halves) {
                widen(unit, &b13[task.group * up + half * hidden + start..][..len], bias);
            }
        }
        for (at, row) in task.rows.clone().enumerate() {
            let [da, _] = space.row(at);
            let s = self.weights.map_or(1.0, |weights| weights[self.slot(row)]);
            let place =
                |half: usize| row * up + half * hidden + start..row * up + half * hidden + start + len;
            for half in 0..halves {
                // SAFETY: each task has its own rows and columns of both halves.
                widen(unit, unsafe { self.h.part(place(half)) }, z[half]);
                if self.scores_first {
                    h[half].copy_from_slice(z[half]);
                    scale(unit, s, z[half], self.b13.is_some().then_some(&*bias[half]));
                }
            }
            outer.copy_from_slice(da);
            if !self.scores_first {
                scale(unit, s, outer, None);
            }
            let [gate, second] = &mut z;
            gradient(unit, self.dims.activation, gate, second, outer);
            if let Some(partial) = &self.partial {
                let first = row * chunks(self.dims) + start / CHUNK;
                // SAFETY: each task has its own chunks of its own rows.
                let partial = unsafe { partial.part(first..first + len.div_ceil(CHUNK)) };
                for (sum, from) in partial.iter_mut().zip((0..len).step_by(CHUNK)) {
                    let cut =
                        |line: &[f32]| -> Range<usize> { from.min(line.len())..line.len().min(from + CHUNK) };
                    let of = |a: &[f32], b: &[f32]| dot(unit, &a[cut(a)], &b[cut(b)]);
                    *sum = if self.scores_first { of(z[0], h[0]) + of(z[1], h[1]) } else { of(da, outer) };
                }
            }
            for half in 0..halves {
                // SAFETY: as above.
                narrow(unit, z[half], unsafe { self.h.part(place(half)) });
            }
            if !self.scores_first {
                scale(unit, s, outer, None);
            }
            // SAFETY: as above.
            narrow(unit, outer, unsafe { self.a.part(row * hidden + start..row * hidden + start + len) });
        }
    }

    /// The gradient of a row's score: the partial sums in order, then the bias's part.
    fn total(&self, row: usize, partial: &[f32], [dout, bias]: &mut [&mut [f32]; 2]) -> f32 {
        let sum = partial.iter().fold(0.0, |sum, part| sum + part);
        match self.b2 {
            Some(b2) if !self.scores_first => {
                let (unit, width) = (self.crew.unit, self.dims.width);
                let group = self.offsets.partition_point(|offset| *offset as usize <= row) - 1;
                widen(unit, self.dout.row(row), dout);
                widen(unit, &b2[group * width..][..width], bias);
                sum + dot(unit, dout, bias) / self.dims.bias_shares as f32
            }
            _ => sum,
        }
    }

    /// Adds up each row's partial sums, into the first of them.
    fn add_up(&self, rows: usize, scratch: &mut [u8], each: usize) {
        let (chunks, Some(partial)) = (chunks(self.dims), &self.partial) else { return };
        share(self.crew.threads, rows.div_ceil(SUM_ROWS), scratch, each, |queue, scratch| {
            let mut scratch = Scratch::new(scratch);
            let mut lines = [scratch.take(self.dims.width), scratch.take(self.dims.width)];
            for row in queue.flat_map(|task| task * SUM_ROWS..rows.min((task + 1) * SUM_ROWS)) {
                // SAFETY: each row is in one task.
                let partial = unsafe { partial.part(row * chunks..(row + 1) * chunks) };
                partial[0] = self.total(row, partial, &mut lines);
            }
        });
    }
}

impl<T: Float> Launch<ExpertDownBwd<T>> for Cpu {
    fn scratch(&self, dims: &ExpertDims) -> usize {
        SLACK + bytes::<f32>(dims.rows * chunks(dims)) + Crew::of(self).bytes::<T>(extra(dims))
    }

    fn launch(
        &self,
        (): &(),
        dims: &ExpertDims,
        args: ExpertDownBwdArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<ExpertDownBwd<T>>(self, dims, &args, scratch.len())?;
        let (crew, op, pack) = (Crew::of(self), ExpertDownBwd::<T>::ID, dims.pack(PackUse::DownBwd));
        let (offsets, index) = (args.offsets.host(), args.index.map(View::host));
        let used = dims.check_values(op, offsets, index)?;
        let weights = weights(crew.unit, (op, "w2"), args.w2, &pack)?;
        let dout = Rows { values: args.dout.host(), width: dims.width, index, fan: dims.fan };
        let product = Product { unit: crew.unit, left: dout, weights, size: form(&pack).0 };
        let ds = args.ds.map(ViewMut::host);
        let mut scratch = Scratch::new(scratch.host());
        let partial = scratch.take::<f32>(used * chunks(dims));
        partial.fill(0.0);
        let finish = Finish {
            crew,
            dims,
            dout,
            offsets,
            b2: args.b2.map(View::host),
            b13: args.b13.map(View::host),
            weights: args.weights.map(View::host),
            scores_first: args.scores_first,
            h: Shared::new(args.h.host()),
            a: Shared::new(args.a.host()),
            partial: ds.is_some().then(|| Shared::new(&mut *partial)),
        };
        let (scratch, extra) = (scratch.rest(), extra(dims));
        self.enter(|| {
            crew.grouped(
                &product,
                offsets,
                (1, dims.hidden),
                (&mut *scratch, extra),
                |task, space, scratch| {
                    finish.run(task, space, scratch);
                },
            );
            finish.add_up(used, scratch, crew.bytes::<T>(extra) / crew.threads);
        });
        if let Some(ds) = ds {
            for (row, partial) in partial.chunks_exact(chunks(dims)).enumerate() {
                ds[index.map_or(row, |index| index[row] as usize)] = partial[0];
            }
        }
        Ok(path(crew.unit, &product.weights))
    }
}
