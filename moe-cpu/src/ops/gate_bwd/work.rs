//! The tasks of GateBwd: groups of columns of dgate, blocks of tokens of dx, groups of experts of dbias.

use crate::chain::{BLOCK, Chain};
use crate::gemm::{Float, Job, SLACK, Scratch, Shared, Simd, Unit, bytes, narrow, widen};
use moe_core::ops::{CHUNK, GateBwdDims, Jitter, Stamp};
use std::ops::Range;

/// Tokens of a task of dx.
const TOKENS: usize = 96;
/// Panels of columns that are stored together.
const PANELS: usize = 4;
/// Experts of a task of dbias.
const EXPERTS: usize = 64;

/// What all tasks read and write.
pub(super) struct Work<'a, T> {
    pub(super) unit: Unit,
    pub(super) dims: &'a GateBwdDims,
    pub(super) dlogits: &'a [f32],
    pub(super) x: &'a [T],
    /// the gate in panels of columns
    pub(super) gate: &'a [f32],
    pub(super) stamp: Stamp,
    pub(super) dx: Shared<'a, T>,
    pub(super) dgate: Shared<'a, f32>,
    pub(super) dbias: Option<Shared<'a, f32>>,
}

/// A worker's memory.
pub(super) struct Space<'a> {
    /// sums of a block of tokens of dx, or of a chunk of dgate
    sums: &'a mut [f32],
    /// sums of all chunks of dgate
    total: &'a mut [f32],
    /// panels of a block of x
    x: &'a mut [f32],
    /// columns of one token
    line: &'a mut [f32],
}

impl<'a> Space<'a> {
    fn lens(unit: Unit, dims: &GateBwdDims) -> [usize; 4] {
        // Without columns nothing is summed, however many experts there are said to be.
        let group = if dims.width > 0 { PANELS * unit.cols() } else { 0 };
        [group * dims.experts.max(TOKENS), group * dims.experts, group * BLOCK, group]
    }

    pub(super) fn bytes(unit: Unit, dims: &GateBwdDims) -> usize {
        SLACK + Self::lens(unit, dims).map(bytes::<f32>).iter().sum::<usize>()
    }

    pub(super) fn new(unit: Unit, dims: &GateBwdDims, memory: &'a mut [u8]) -> Self {
        let mut scratch = Scratch::new(memory);
        let [sums, total, x, line] = Self::lens(unit, dims).map(|len| scratch.take(len));
        Self { sums, total, x, line }
    }
}

/// One [`Chain`] for each panel of a group, side by side.
struct Chains<'a> {
    left: &'a [f32],
    stride: usize,
    across: usize,
    rows: usize,
    /// `count` panels of `panel` elements each
    panels: &'a [f32],
    count: usize,
    panel: usize,
    steps: usize,
    sums: &'a mut [f32],
    pitch: usize,
    first: bool,
}

impl Job for Chains<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in 0..self.count {
            let chain = Chain::<false> {
                left: self.left,
                stride: self.stride,
                across: self.across,
                rows: self.rows,
                panel: &self.panels[at * self.panel..][..self.panel],
                steps: self.steps,
                sums: &mut self.sums[at * S::COLS..],
                pitch: self.pitch,
                first: self.first,
            };
            chain.run(s);
        }
    }
}

/// `sums[e] += row[e]` for all rows, in order.
struct AddRows<'a> {
    rows: &'a [f32],
    pitch: usize,
    sums: &'a mut [f32],
}

impl Job for AddRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for row in self.rows.chunks(self.pitch) {
            self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
}

impl<T: Float> Work<'_, T> {
    /// The columns of a group of panels.
    fn columns(&self, group: usize) -> Range<usize> {
        let len = PANELS * self.unit.cols();
        group * len..self.dims.width.min((group + 1) * len)
    }

    fn groups(&self) -> usize {
        self.dims.width.div_ceil(PANELS * self.unit.cols())
    }

    fn blocks(&self) -> usize {
        if self.dims.width > 0 { self.dims.tokens.div_ceil(TOKENS) } else { 0 }
    }

    /// Number of tasks.
    pub(super) fn tasks(&self) -> usize {
        let biases = self.dbias.as_ref().map_or(0, |_| self.dims.experts.div_ceil(EXPERTS));
        self.groups() + self.blocks() + biases
    }

    /// Runs one task.
    pub(super) fn run(&self, task: usize, space: &mut Space<'_>) {
        let (groups, blocks) = (self.groups(), self.blocks());
        if task < groups {
            self.gate(task, space);
        } else if task < groups + blocks {
            let start = (task - groups) * TOKENS;
            self.inputs(start..self.dims.tokens.min(start + TOKENS), space);
        } else if let Some(dbias) = &self.dbias {
            self.bias(dbias, task - groups - blocks);
        }
    }

    fn jitter(&self, token: usize, columns: Range<usize>, values: &mut [f32]) {
        if let Some(jitter) = self.dims.jitter {
            let key = Jitter::key(&self.stamp, token);
            values.iter_mut().zip(columns).for_each(|(value, d)| *value *= jitter.factor(key, d));
        }
    }

    /// dx of a block of tokens.
    fn inputs(&self, tokens: Range<usize>, space: &mut Space<'_>) {
        let GateBwdDims { width, experts, .. } = *self.dims;
        let (cols, pitch) = (self.unit.cols(), PANELS * self.unit.cols());
        for columns in (0..self.groups()).map(|group| self.columns(group)) {
            let panels = columns.start * experts..columns.end.next_multiple_of(cols) * experts;
            self.unit.run(Chains {
                left: &self.dlogits[tokens.start * experts..],
                stride: experts,
                across: 1,
                rows: tokens.len(),
                panels: &self.gate[panels],
                count: columns.len().div_ceil(cols),
                panel: experts * cols,
                steps: experts,
                sums: space.sums,
                pitch,
                first: true,
            });
            for (token, sums) in tokens.clone().zip(space.sums.chunks_exact_mut(pitch)) {
                let sums = &mut sums[..columns.len()];
                self.jitter(token, columns.clone(), sums);
                // SAFETY: each token is in one task.
                let dx = unsafe { self.dx.part(token * width + columns.start..token * width + columns.end) };
                narrow(self.unit, sums, dx);
            }
        }
    }

    /// dgate of a group of panels.
    fn gate(&self, group: usize, space: &mut Space<'_>) {
        let GateBwdDims { tokens, width, experts, accumulate, .. } = *self.dims;
        let (columns, cols, pitch) = (self.columns(group), self.unit.cols(), PANELS * self.unit.cols());
        space.total.fill(0.0);
        for chunk in (0..tokens).step_by(CHUNK) {
            let end = tokens.min(chunk + CHUNK);
            for start in (chunk..end).step_by(BLOCK) {
                let block = start..end.min(start + BLOCK);
                self.bring(block.clone(), columns.clone(), space);
                self.unit.run(Chains {
                    left: &self.dlogits[start * experts..],
                    stride: 1,
                    across: experts,
                    rows: experts,
                    panels: space.x,
                    count: columns.len().div_ceil(cols),
                    panel: BLOCK * cols,
                    steps: block.len(),
                    sums: space.sums,
                    pitch,
                    first: start == chunk,
                });
            }
            space.total.iter_mut().zip(&*space.sums).for_each(|(total, sum)| *total += sum);
        }
        for (expert, sums) in space.total.chunks_exact(pitch).enumerate() {
            // SAFETY: each task has its own columns.
            let out =
                unsafe { self.dgate.part(expert * width + columns.start..expert * width + columns.end) };
            store(out, sums, accumulate);
        }
    }

    /// Columns of a block of tokens, as the router saw them, into panels.
    fn bring(&self, tokens: Range<usize>, columns: Range<usize>, space: &mut Space<'_>) {
        let cols = self.unit.cols();
        space.line[columns.len()..].fill(0.0);
        for (row, token) in tokens.enumerate() {
            let line = &mut space.line[..columns.len()];
            widen(self.unit, &self.x[token * self.dims.width..][columns.clone()], line);
            self.jitter(token, columns.clone(), line);
            for (panel, part) in space.x.chunks_exact_mut(BLOCK * cols).zip(space.line.chunks_exact(cols)) {
                panel[row * cols..][..cols].copy_from_slice(part);
            }
        }
    }

    /// dbias of some experts.
    fn bias(&self, dbias: &Shared<'_, f32>, task: usize) {
        let GateBwdDims { experts: pitch, accumulate, .. } = *self.dims;
        let experts = task * EXPERTS..pitch.min((task + 1) * EXPERTS);
        let mut total = [0.0; EXPERTS];
        for chunk in self.dlogits.chunks(CHUNK * pitch) {
            let mut sums = [0.0; EXPERTS];
            let sums = &mut sums[..experts.len()];
            self.unit.run(AddRows { rows: &chunk[experts.start..], pitch, sums });
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += *sum);
        }
        // SAFETY: each task has its own experts.
        store(unsafe { dbias.part(experts) }, &total, accumulate);
    }
}

/// Overwrites a gradient or adds to it.
fn store(out: &mut [f32], sums: &[f32], accumulate: bool) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if accumulate { *out + sum } else { *sum };
    }
}
