//! Values that point outside are errors, on the way in and not in unsafe code.

use super::{launch, values};
use moe_core::ops::{
    Combine, CombineArgs, CombineDims, GateBwd, GateBwdArgs, GateBwdDims, Gather, GatherArgs, GatherDims,
    Merge, MergeArgs, MergeDims, Route, RouteArgs, RouteBwd, RouteBwdArgs, RouteBwdDims, RouteDims,
    RouteRule, RouteStats, RouteStatsArgs, RouteStatsDims, ScoreFunction, Weight,
};
use moe_core::{BackendError, Error, ErrorKind, Kernel, View, ViewMut};
use moe_cpu::{Cpu, CpuError};

#[track_caller]
fn assert_shape<R: std::fmt::Debug>(result: Result<R, Error<CpuError>>) {
    match result {
        Err(Error::Device(error)) => assert_eq!(error.kind(), ErrorKind::Shape, "{error}"),
        other => panic!("expected an error of the device, got {other:?}"),
    }
}

#[test]
fn a_row_outside_y() {
    let cpu = Cpu::with_threads(2).unwrap();
    let (y, mut out) = ([0.0; 6], [0.0; 4]);
    let args = CombineArgs {
        y: View::of(&y),
        row_of_slot: View::of(&[0, 3]),
        weights: None,
        base: [None, None, None],
        out: ViewMut::of(&mut out),
    };
    assert_shape(launch!(&cpu, Combine<f32>, CombineDims { tokens: 2, top_k: 1, width: 2, rows: 3 }, args));
}

#[test]
fn an_index_or_an_offset_outside() {
    let cpu = Cpu::with_threads(2).unwrap();
    let gather = |index: [u32; 2], offsets: [u32; 3], pitch| {
        let mut out = vec![0.0; if pitch > 0 { pitch * 4 } else { 4 }];
        let args = GatherArgs {
            source: View::of(&[0.0; 6]),
            index: View::of(&index),
            offsets: View::of(&offsets),
            out: ViewMut::of(&mut out),
        };
        let dims = GatherDims { sources: 3, fan: 2, rows: 2, width: 2, groups: 2, pitch };
        launch!(&cpu, Gather<f32>, dims, args)
    };
    assert_shape(gather([0, 6], [0, 1, 2], 0));
    assert_shape(gather([0, 1], [0, 3, 3], 0));
    assert_shape(gather([0, 1], [1, 1, 2], 0));
    assert_shape(gather([0, 1], [0, 2, 1], 0));
    assert_shape(gather([0, 1], [0, 2, 2], 1));
    gather([0, 5], [0, 1, 2], 1).unwrap();
}

#[test]
fn sequences_beyond_the_tokens() {
    let cpu = Cpu::with_threads(1).unwrap();
    let dims =
        RouteStatsDims { tokens: 2, experts: 2, top_k: 1, sequences: 1, score: ScoreFunction::Softmax };
    let (mut counts, mut sums, mut z) = ([0; 2], [0.0; 2], [0.0]);
    let args = RouteStatsArgs {
        logits: View::of(&[0.0; 4]),
        ids: View::of(&[0; 2]),
        sequences: View::of(&[0, 3]),
        counts: ViewMut::of(&mut counts),
        prob_sums: ViewMut::of(&mut sums),
        z_sum: ViewMut::of(&mut z),
    };
    assert_shape(launch!(&cpu, RouteStats<f32>, dims, args));
}

#[test]
fn a_packed_gate_of_the_wrong_length_and_scratch_that_is_too_short() {
    let cpu = Cpu::with_threads(1).unwrap();
    let dims = RouteDims { tokens: 1, width: 4, experts: 2, top_k: 1, rule: RouteRule::default() };
    let x = values::<f32>(4, 1);
    let launch = |gate, scratch: &mut [u8]| {
        let (mut logits, mut ids, mut weights, mut bad) = ([0.0; 2], [0], [0.0], [0]);
        let args = RouteArgs {
            x: View::of(&x),
            gate,
            gate_bias: None,
            selection_bias: None,
            forced_ids: None,
            stamp: None,
            logits: ViewMut::of(&mut logits),
            ids: ViewMut::of(&mut ids),
            weights: ViewMut::of(&mut weights),
            non_finite: ViewMut::of(&mut bad),
        };
        Kernel::<Route<f32>>::launch(&cpu, &(), &dims, args, ViewMut::of(scratch)).map_err(Error::Device)
    };
    let mut scratch = vec![0; Kernel::<Route<f32>>::scratch(&cpu, &dims)];
    assert_shape(launch(Weight::Packed(View::of(&[0; 7])), &mut scratch));
    assert_shape(launch(Weight::Plain(View::of(&[0.0; 8])), &mut scratch[1..]));
    launch(Weight::Plain(View::of(&[0.0; 8])), &mut scratch).unwrap();
}

#[test]
fn absurd_sizes_of_nothing() {
    let (cpu, most) = (Cpu::with_threads(2).unwrap(), usize::MAX);
    let none: [f32; 0] = [];
    let args = CombineArgs {
        y: View::of(&none),
        row_of_slot: View::of(&[]),
        weights: None,
        base: [None, None, None],
        out: ViewMut::of(&mut []),
    };
    launch!(&cpu, Combine<f32>, CombineDims { tokens: most, top_k: 0, width: 0, rows: 0 }, args).unwrap();
    let args = GatherArgs {
        source: View::of(&none),
        index: View::of(&[0, 1]),
        offsets: View::of(&[0, 0, 0, 2]),
        out: ViewMut::of(&mut []),
    };
    let dims = GatherDims { sources: 2, fan: 1, rows: 2, width: 0, groups: 3, pitch: most };
    launch!(&cpu, Gather<f32>, dims, args).unwrap();
    let (mut offsets, mut overflow) = ([9], [9]);
    let args = MergeArgs {
        counts: View::of(&[]),
        offsets: ViewMut::of(&mut offsets),
        index: ViewMut::of(&mut []),
        overflow: ViewMut::of(&mut overflow),
    };
    launch!(&cpu, Merge, MergeDims { ranks: most, experts: 0, pitch: 0, rows: 0 }, args).unwrap();
    assert_eq!((offsets, overflow), ([0], [0]));
    for (tokens, experts) in [(most, 0), (0, most)] {
        let args = GateBwdArgs {
            dlogits: View::of(&none),
            x: View::of(&none),
            gate: Weight::Plain(View::of(&none)),
            stamp: None,
            dx: ViewMut::of(&mut []),
            dgate: ViewMut::of(&mut []),
            dbias: None,
        };
        let dims = GateBwdDims { tokens, width: 0, experts, jitter: None, accumulate: false };
        launch!(&cpu, GateBwd<f32>, dims, args).unwrap();
    }
    let args = RouteBwdArgs {
        logits: View::of(&none),
        ids: View::of(&[]),
        dweights: View::of(&none),
        row_of_slot: None,
        aux: None,
        z_factor: None,
        load: None,
        dlogits: ViewMut::of(&mut []),
    };
    let rule = RouteRule::default();
    let dims = RouteBwdDims { tokens: 0, experts: 1, top_k: most, sequences: 0, rule, accumulate: false };
    launch!(&cpu, RouteBwd<f32>, dims, args).unwrap();
}
