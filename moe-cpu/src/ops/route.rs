//! Route: blocks of tokens, each from its rows of x to its experts' weights while they are near.
//!
//! A block of x times a panel of the gate is one [`Chain`]; sums, scores and choices follow token by token. Nothing
//! is summed across tokens, so the bits depend neither on the blocks nor on the threads. The native gate is the exact one.

mod token;

use super::{Launch, path, ready};
use crate::chain::{BLOCK, Chain};
use crate::device::Cpu;
use crate::error::CpuError;
use crate::gemm::{
    Float, Job, SLACK, Scratch, Shared, Simd, Size, Unit, Weights, bytes, form, share, weights, widen,
};
use moe_core::ops::{Jitter, Route, RouteArgs, RouteDims, Stamp};
use moe_core::{Device, Op, Out, Path, View};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use token::{Row, Rule, Slots};

/// Most tokens of a task: their block of x and their sums lie in a second-level cache.
const MAX_TOKENS: usize = 96;
/// A multiple of the tile heights of all units.
const EVEN: usize = 12;

/// What all tasks read and write.
struct Work<'a, T> {
    unit: Unit,
    dims: &'a RouteDims,
    x: &'a [T],
    gate: Weights<'a, T>,
    size: Size,
    rule: Rule<'a, T>,
    stamp: Stamp,
    logits: Shared<'a, f32>,
    ids: Shared<'a, u32>,
    weights: Shared<'a, f32>,
    non_finite: &'a AtomicU32,
}

/// A worker's memory.
struct Space<'a, T> {
    /// (tokens, [`BLOCK`])
    x: &'a mut [f32],
    /// one block of a panel, in storage type and widened
    panel: &'a mut [T],
    wide: &'a mut [f32],
    /// (tokens, experts rounded up to panels)
    sums: &'a mut [f32],
    row: Row<'a>,
}

impl<'a, T: Float> Space<'a, T> {
    fn bytes(unit: Unit, dims: &RouteDims) -> usize {
        let sums = dims.experts.next_multiple_of(unit.cols()) * MAX_TOKENS;
        let panel = BLOCK * unit.cols();
        SLACK
            + bytes::<f32>(MAX_TOKENS * BLOCK)
            + bytes::<T>(panel + T::BEHIND)
            + bytes::<f32>(panel)
            + bytes::<f32>(sums)
            + Row::bytes(dims.experts)
    }

    fn new(unit: Unit, dims: &RouteDims, memory: &'a mut [u8]) -> Self {
        let mut scratch = Scratch::new(memory);
        Self {
            x: scratch.take(MAX_TOKENS * BLOCK),
            panel: scratch.take(BLOCK * unit.cols() + T::BEHIND),
            wide: scratch.take(BLOCK * unit.cols()),
            sums: scratch.take(dims.experts.next_multiple_of(unit.cols()) * MAX_TOKENS),
            row: Row::new(dims.experts, &mut scratch),
        }
    }
}

/// `steps` k's of a panel in f32, k after k: as they lie, or widened and with bf16 pairs taken apart.
fn widened<'b, T: Float>(unit: Unit, panel: &'b [T], steps: usize, wide: &'b mut [f32]) -> &'b [f32] {
    let panel = &panel[..steps.next_multiple_of(T::STEP) * unit.cols()];
    if size_of::<T>() == size_of::<f32>() {
        return bytemuck::cast_slice(panel);
    }
    let wide = &mut wide[..panel.len()];
    if T::STEP == 1 {
        widen(unit, panel, wide);
    } else {
        unit.run(Unpair { panel, wide });
    }
    wide
}

/// A block of x times a block of a panel.
struct Multiply<'a> {
    x: &'a [f32],
    tokens: usize,
    panel: &'a [f32],
    steps: usize,
    sums: &'a mut [f32],
    pitch: usize,
    first: bool,
}

impl Job for Multiply<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x: left, tokens: rows, panel, steps, sums, pitch, first } = self;
        Chain::<true> { left, stride: BLOCK, across: 1, rows, panel, steps, sums, pitch, first }.run(s);
    }
}

/// Takes apart a panel of bf16 pairs: (step, column, pair) to (k, column).
struct Unpair<'a, T> {
    panel: &'a [T],
    wide: &'a mut [f32],
}

impl<T: Float> Job for Unpair<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (pairs, places) = (self.panel.chunks_exact(2 * S::COLS), self.wide.chunks_exact_mut(2 * S::COLS));
        for (pairs, place) in pairs.zip(places) {
            let (first, second) = place.split_at_mut(S::COLS);
            for column in 0..S::COLS {
                first[column] = pairs[2 * column].widen();
                second[column] = pairs[2 * column + 1].widen();
            }
        }
    }
}

impl<T: Float> Work<'_, T> {
    fn run(&self, tokens: Range<usize>, space: &mut Space<'_, T>) {
        self.multiply(tokens.clone(), space);
        let RouteDims { experts, top_k, .. } = *self.dims;
        let slots = tokens.start * top_k..tokens.end * top_k;
        // SAFETY: each task has its own tokens.
        let (logits, ids, weights) = unsafe {
            (
                self.logits.part(tokens.start * experts..tokens.end * experts),
                self.ids.part(slots.clone()),
                self.weights.part(slots.clone()),
            )
        };
        let out = Slots { first: slots.start, logits, ids, weights };
        let pitch = experts.next_multiple_of(self.unit.cols());
        let bad = self.unit.run(token::Finish {
            rule: &self.rule,
            sums: space.sums,
            pitch,
            out,
            row: &mut space.row,
        });
        self.non_finite.fetch_add(bad, Ordering::Relaxed);
    }

    /// The block's sums, without the gate's bias.
    fn multiply(&self, tokens: Range<usize>, space: &mut Space<'_, T>) {
        let (unit, width, cols) = (self.unit, self.dims.width, self.unit.cols());
        let pitch = self.dims.experts.next_multiple_of(cols);
        for block in 0..width.div_ceil(BLOCK).max(1) {
            let depth = block * BLOCK..width.min((block + 1) * BLOCK);
            for (row, token) in tokens.clone().enumerate() {
                let x = &mut space.x[row * BLOCK..][..depth.len()];
                widen(unit, &self.x[token * width..][depth.clone()], x);
                if let Some(jitter) = self.dims.rule.jitter {
                    let key = Jitter::key(&self.stamp, token);
                    x.iter_mut().zip(depth.clone()).for_each(|(x, d)| *x *= jitter.factor(key, d));
                }
            }
            for panel in 0..self.size.panels(unit) {
                let part = self.gate.panel(unit, self.size, (0, panel), depth.clone(), space.panel);
                unit.run(Multiply {
                    x: space.x,
                    tokens: tokens.len(),
                    panel: widened(unit, part, depth.len(), space.wide),
                    steps: depth.len(),
                    sums: &mut space.sums[panel * cols..],
                    pitch,
                    first: block == 0,
                });
            }
        }
    }
}

impl<T: Float> Launch<Route<T>> for Cpu {
    fn scratch(&self, dims: &RouteDims) -> usize {
        self.threads() * Space::<T>::bytes(self.unit(), dims)
    }

    fn launch(
        &self,
        (): &(),
        dims: &RouteDims,
        args: RouteArgs<'_, Self, T>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, CpuError> {
        ready::<Route<T>>(self, dims, &args, scratch.len())?;
        let (unit, pack, threads) = (self.unit(), dims.pack(), self.threads());
        let stamp = args.stamp.and_then(|words| words.host().try_into().ok());
        let stamp = stamp.map_or_else(Stamp::default, Stamp::of);
        let non_finite = AtomicU32::new(0);
        let work = Work {
            unit,
            dims,
            x: args.x.host(),
            gate: weights(unit, (Route::<T>::ID, "gate"), args.gate, &pack)?,
            size: form(&pack).0,
            rule: Rule {
                dims,
                gate_bias: args.gate_bias.map(View::host),
                selection_bias: args.selection_bias.map(View::host),
                forced: args.forced_ids.map(View::host),
                first_slot: stamp.first_token.wrapping_mul(dims.top_k as u64),
            },
            stamp,
            logits: Shared::new(args.logits.host()),
            ids: Shared::new(args.ids.host()),
            weights: Shared::new(args.weights.host()),
            non_finite: &non_finite,
        };
        let height = dims.tokens.div_ceil(threads).next_multiple_of(EVEN).min(MAX_TOKENS);
        let each = Space::<T>::bytes(unit, dims);
        self.enter(|| {
            share(threads, dims.tokens.div_ceil(height.max(1)), scratch.host(), each, |queue, memory| {
                let mut space = Space::new(unit, dims, memory);
                for task in queue {
                    work.run(task * height..dims.tokens.min((task + 1) * height), &mut space);
                }
            });
        });
        args.non_finite.host()[0] = non_finite.into_inner();
        Ok(path(self))
    }
}
