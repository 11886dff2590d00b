//! A launch allocates nothing, on any thread, once the threads have met every op.

#[path = "../benches/cases/mod.rs"]
mod cases;

use cases::{Case, OPS, Shape};
use half::bf16;
use moe_core::ops::{
    AdamW, AdamWArgs, AdamWDims, Aux, BiasUpdate, BiasUpdateArgs, BiasUpdateDims, Combine, CombineArgs,
    CombineDims, GateBwd, GateBwdArgs, GateBwdDims, Gather, GatherArgs, GatherDims, Merge, MergeArgs,
    MergeDims, PackWeights, PackWeightsArgs, Route, RouteArgs, RouteBwd, RouteBwdArgs, RouteBwdDims,
    RouteDims, RouteRule, RouteStats, RouteStatsArgs, RouteStatsDims, Sort, SortArgs, SortDims, SumSquares,
    SumSquaresArgs, SumSquaresDims, Weight,
};
use moe_core::{Device, View, ViewMut};
use moe_cpu::{Cpu, Float};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 1500;
const WIDTH: usize = 96;
const EXPERTS: usize = 24;
const TOP_K: usize = 3;
const SLOTS: usize = TOKENS * TOP_K;

/// All buffers of one pass over the ops.
struct Buffers<T> {
    x: Vec<T>,
    gate: Vec<T>,
    packed: moe_cpu::Buffer<u8>,
    logits: Vec<f32>,
    dlogits: Vec<f32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
    offsets: Vec<u32>,
    rows: Vec<u32>,
    slots: Vec<u32>,
    counts: Vec<u32>,
    sums: Vec<f32>,
    gathered: Vec<T>,
    out: Vec<T>,
    dgate: Vec<f32>,
    bias: Vec<f32>,
    scratch: Vec<u8>,
}

impl<T: Float> Buffers<T> {
    fn new(cpu: &Cpu) -> Self {
        let dims = RouteDims {
            tokens: TOKENS,
            width: WIDTH,
            experts: EXPERTS,
            top_k: TOP_K,
            rule: RouteRule::default(),
        };
        let values =
            |len: usize| (0..len).map(|i| T::narrow((i * 7 % 31) as f32 / 31.0 - 0.5)).collect::<Vec<T>>();
        Self {
            x: values(TOKENS * WIDTH),
            gate: values(EXPERTS * WIDTH),
            packed: cpu.alloc(&(), cpu.packed_len::<T>(&dims.pack())).unwrap(),
            logits: vec![0.0; TOKENS * EXPERTS],
            dlogits: vec![0.0; TOKENS * EXPERTS],
            ids: vec![0; SLOTS],
            weights: vec![0.0; SLOTS],
            offsets: vec![0; EXPERTS + 1],
            rows: vec![0; SLOTS],
            slots: vec![0; SLOTS],
            counts: vec![0; EXPERTS],
            sums: vec![0.0; EXPERTS],
            gathered: values(SLOTS * WIDTH),
            out: values(TOKENS * WIDTH),
            dgate: vec![0.0; EXPERTS * WIDTH],
            bias: vec![0.0; EXPERTS],
            scratch: vec![0; 32 << 20],
        }
    }

    /// Every op of this file's list, once.
    fn pass(&mut self, cpu: &Cpu) {
        let scratch = &mut self.scratch[..];
        let rule = RouteRule { normalize: true, ..RouteRule::default() };
        let dims = RouteDims { tokens: TOKENS, width: WIDTH, experts: EXPERTS, top_k: TOP_K, rule };
        let (mut one, mut dropped) = ([0.0], [0]);
        macro_rules! launch {
            ($op:ty, $dims:expr, $args:expr) => {
                moe_core::run::<$op, Cpu>(cpu, &(), &$dims, $args, ViewMut::of(scratch)).unwrap()
            };
        }
        let args = PackWeightsArgs { plain: View::of(&self.gate), packed: ViewMut::of(&mut self.packed) };
        launch!(PackWeights<T>, dims.pack(), args);
        for gate in [Weight::Packed(View::of(&self.packed)), Weight::Plain(View::of(&self.gate))] {
            let args = RouteArgs {
                x: View::of(&self.x),
                gate,
                gate_bias: None,
                selection_bias: Some(View::of(&self.bias)),
                forced_ids: None,
                stamp: None,
                logits: ViewMut::of(&mut self.logits),
                ids: ViewMut::of(&mut self.ids),
                weights: ViewMut::of(&mut self.weights),
                non_finite: ViewMut::of(&mut dropped),
            };
            launch!(Route<T>, dims, args);
        }
        for (capacity, by_score) in [(None, false), (Some(50), false), (Some(50), true)] {
            let args = SortArgs {
                ids: View::of(&self.ids),
                weights: by_score.then(|| View::of(&self.weights[..])),
                offsets: ViewMut::of(&mut self.offsets),
                row_of_slot: ViewMut::of(&mut self.rows),
                slot_of_row: ViewMut::of(&mut self.slots),
                counts: ViewMut::of(&mut self.counts),
                dropped: ViewMut::of(&mut dropped),
            };
            launch!(Sort<T>, SortDims { slots: SLOTS, experts: EXPERTS, capacity }, args);
        }
        let args = GatherArgs {
            source: View::of(&self.x),
            index: View::of(&self.slots),
            offsets: View::of(&self.offsets),
            out: ViewMut::of(&mut self.gathered),
        };
        let sizes =
            GatherDims { sources: TOKENS, fan: TOP_K, rows: SLOTS, width: WIDTH, groups: EXPERTS, pitch: 0 };
        launch!(Gather<T>, sizes, args);
        let args = CombineArgs {
            y: View::of(&self.gathered),
            row_of_slot: View::of(&self.rows),
            weights: Some(View::of(&self.weights)),
            base: [None, None, None],
            out: ViewMut::of(&mut self.out),
        };
        launch!(Combine<T>, CombineDims { tokens: TOKENS, top_k: TOP_K, width: WIDTH, rows: SLOTS }, args);
        let bounds = [0, TOKENS as u32];
        let args = RouteStatsArgs {
            logits: View::of(&self.logits),
            ids: View::of(&self.ids),
            sequences: View::of(&bounds),
            counts: ViewMut::of(&mut self.counts),
            prob_sums: ViewMut::of(&mut self.sums),
            z_sum: ViewMut::of(&mut one),
        };
        let sizes = RouteStatsDims {
            tokens: TOKENS,
            experts: EXPERTS,
            top_k: TOP_K,
            sequences: 1,
            score: rule.score,
        };
        launch!(RouteStats<T>, sizes, args);
        let args = RouteBwdArgs {
            logits: View::of(&self.logits),
            ids: View::of(&self.ids),
            dweights: View::of(&self.weights),
            row_of_slot: Some(View::of(&self.rows)),
            aux: Some(Aux {
                sequences: View::of(&bounds),
                counts: View::of(&self.counts),
                factors: View::of(&[0.1]),
            }),
            z_factor: Some(View::of(&[0.1])),
            load: None,
            dlogits: ViewMut::of(&mut self.dlogits),
        };
        let sizes = RouteBwdDims {
            tokens: TOKENS,
            experts: EXPERTS,
            top_k: TOP_K,
            sequences: 1,
            rule,
            accumulate: false,
        };
        launch!(RouteBwd<T>, sizes, args);
        let args = GateBwdArgs {
            dlogits: View::of(&self.dlogits),
            x: View::of(&self.x),
            gate: Weight::Packed(View::of(&self.packed)),
            stamp: None,
            dx: ViewMut::of(&mut self.out),
            dgate: ViewMut::of(&mut self.dgate),
            dbias: Some(ViewMut::of(&mut self.sums)),
        };
        let sizes =
            GateBwdDims { tokens: TOKENS, width: WIDTH, experts: EXPERTS, jitter: None, accumulate: false };
        launch!(GateBwd<T>, sizes, args);
        let args = MergeArgs {
            counts: View::of(&self.counts),
            offsets: ViewMut::of(&mut self.offsets),
            index: ViewMut::of(&mut self.slots),
            overflow: ViewMut::of(&mut dropped),
        };
        launch!(Merge, MergeDims { ranks: 1, experts: EXPERTS, pitch: 0, rows: SLOTS }, args);
        let args = SumSquaresArgs { values: View::of(&self.logits), sum: ViewMut::of(&mut one) };
        launch!(SumSquares<T>, SumSquaresDims { len: self.logits.len(), accumulate: false }, args);
        let args = BiasUpdateArgs {
            counts: View::of(&self.counts),
            rate: View::of(&[0.1]),
            bias: ViewMut::of(&mut self.bias),
        };
        launch!(BiasUpdate<T>, BiasUpdateDims { experts: EXPERTS }, args);
        let args = AdamWArgs {
            settings: View::of(&[0.0, 0.9, 0.9, 0.1, 0.1, 1.0, 1.0, 0.0]),
            grad: View::of(&self.dgate),
            w: ViewMut::of(&mut self.gate),
            master: None,
            m: ViewMut::of(&mut self.logits[..EXPERTS * WIDTH]),
            v: ViewMut::of(&mut self.dlogits[..EXPERTS * WIDTH]),
        };
        launch!(AdamW<T>, AdamWDims { len: EXPERTS * WIDTH }, args);
    }
}

/// Every op of a layer, once: on one rank, and with many.
fn layer<T: Float>(case: &mut Case<T>) {
    for op in OPS {
        case.prepare(op);
        case.launch(op).unwrap();
    }
}

fn count<T: Float>(cpu: &Cpu) -> usize {
    let mut buffers = Buffers::<T>::new(cpu);
    let mut case = Case::<T>::new(cpu, Shape::new([300, 72, 80, 8, 2])).unwrap();
    cpu.enter(|| {
        let mut passes = |times: usize| {
            for _ in 0..times {
                buffers.pass(cpu);
                layer(&mut case);
            }
        };
        passes(5);
        let before = COUNT.load(Ordering::Relaxed);
        passes(20);
        COUNT.load(Ordering::Relaxed) - before
    })
}

// One test, so that no other test's allocations are counted.
#[test]
fn steady_launches_allocate_nothing() {
    for threads in 1..=3 {
        let cpu = Cpu::with_threads(threads).unwrap();
        assert_eq!((count::<f32>(&cpu), count::<bf16>(&cpu)), (0, 0), "{threads} threads");
    }
}
