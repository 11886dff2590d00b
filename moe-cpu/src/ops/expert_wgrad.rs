//! ExpertWgrad: a task is a rectangle of one expert's gradient, summed over all of the expert's rows and stored once.

use super::{Launch, ready};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{
    Crew, Factors, Float, Leave, MAX_ROWS, Outer, OuterSpace, Rows, SLACK, Scratch, Shared, bytes,
    outer_path, share, width,
};
use core::ops::Range;
use moe_core::ops::{ExpertWgrad, ExpertWgradArgs, WgradDims};
use moe_core::{Device, Op, Out, Path, ShapeError, View, ViewMut, check_index, check_offsets};

/// The rectangles of all gradients, and where they go.
struct Rectangles<'a, T> {
    dims: &'a WgradDims,
    offsets: &'a [u32],
    /// columns of a rectangle
    width: usize,
    outer: Outer<'a, T>,
    bias_factors: Option<Factors<'a>>,
    dw: Shared<'a, f32>,
    dbias: Option<Shared<'a, f32>>,
}

fn each() -> usize {
    OuterSpace::bytes() + 2 * bytes::<f32>(MAX_ROWS) + SLACK
}

impl<T: Float> Rectangles<'_, T> {
    /// Rectangles of a gradient, across and down. A gradient without columns still has a bias.
    fn across(&self) -> usize {
        self.dims.right.div_ceil(self.width.max(1)).max(1)
    }

    fn down(&self) -> usize {
        self.dims.left.div_ceil(MAX_ROWS)
    }

    /// Neighbours share their right columns, which are the dearer to bring.
    fn run(&self, number: usize, space: &mut OuterSpace<'_>, mut scratch: Scratch<'_>) {
        let WgradDims { left, right, .. } = *self.dims;
        let (across, down) = (self.across(), self.down());
        let (expert, at) = (number / (across * down), number % (across * down));
        let rows = self.offsets[expert] as usize..self.offsets[expert + 1] as usize;
        let block = |at: usize, size: usize, end: usize| at * size..end.min((at + 1) * size);
        let (i, j) = (block(at % down, MAX_ROWS, left), block(at / down, self.width, right));
        let start = (expert * left + i.start) * right + j.start;
        // SAFETY: each rectangle is one task's.
        let place = unsafe { self.dw.rectangle(start, right, [i.len(), j.len()]) };
        let leave = if self.dims.accumulate { Leave::Add } else { Leave::Store };
        self.outer.run(rows.clone(), i.clone(), j.clone(), (place, leave), space);
        if let (Some(dbias), 0) = (&self.dbias, j.start) {
            let (room, line) = (scratch.take::<f32>(i.len()), scratch.take::<f32>(i.len()));
            self.outer.sum_left(rows, i.clone(), self.bias_factors, room, line);
            // SAFETY: only the first rectangle of these left columns comes here.
            self.put(unsafe { dbias.part(expert * left + i.start..expert * left + i.end) }, line);
        }
    }

    fn put(&self, gradient: &mut [f32], sums: &[f32]) {
        let pairs = gradient.iter_mut().zip(sums);
        if self.dims.accumulate {
            pairs.for_each(|(gradient, sum)| *gradient += sum);
        } else {
            pairs.for_each(|(gradient, sum)| *gradient = *sum);
        }
    }
}

/// Offsets and index point inside.
fn check_values<T: Float>(
    dims: &WgradDims,
    offsets: &[u32],
    index: Option<&[u32]>,
) -> Result<(), ShapeError> {
    let (op, slots) = (ExpertWgrad::<T>::ID, dims.tokens.saturating_mul(dims.fan));
    check_offsets(op, offsets, dims.rows)?;
    let used: Range<usize> = 0..offsets.last().map_or(0, |last| *last as usize);
    index.map_or(Ok(()), |index| check_index(op, "index", &index[used], slots))
}

impl<T: Float> Launch<ExpertWgrad<T>> for Cpu {
    fn scratch(&self, _: &WgradDims) -> usize {
        self.threads() * each()
    }

    fn launch(
        &self,
        (): &(),
        dims: &WgradDims,
        args: ExpertWgradArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<ExpertWgrad<T>>(self, dims, &args, scratch.len())?;
        let crew = Crew::of(self);
        let (offsets, index) = (args.offsets.host(), args.index.map(View::host));
        check_values::<T>(dims, offsets, index)?;
        let rows = |values, width, gather: bool| match index {
            Some(_) if gather => Rows { values, width, index, fan: dims.fan },
            _ => Rows::plain(values, width),
        };
        let factors = |values| Factors { values, index };
        let deepest = offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize).max().unwrap_or(0);
        let path = outer_path::<T>(crew.unit, args.right_weights.is_some());
        let rectangles = Rectangles {
            dims,
            offsets,
            width: width(crew.unit, deepest, dims.right),
            outer: Outer {
                unit: crew.unit,
                left: rows(args.left.host(), dims.left, dims.gather_left),
                right: rows(args.right.host(), dims.right, dims.gather_right),
                factors: args.right_weights.map(View::host).map(factors),
            },
            bias_factors: args.bias_weights.map(View::host).map(factors),
            dw: Shared::new(args.dw.host()),
            dbias: args.dbias.map(|dbias| Shared::new(ViewMut::host(dbias))),
        };
        let total = dims.experts * rectangles.across() * rectangles.down();
        let scratch = scratch.host();
        self.enter(|| {
            share(crew.threads, total, scratch, each(), |queue, scratch| {
                let mut scratch = Scratch::new(scratch);
                let mut space = OuterSpace::new(crew.unit, &mut scratch);
                queue.for_each(|number| rectangles.run(number, &mut space, scratch.again()));
            });
        });
        Ok(path)
    }
}
