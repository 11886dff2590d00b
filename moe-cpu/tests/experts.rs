//! The expert ops against their references, on every instruction set of this processor.

use half::{bf16, f16};
use moe_core::ops::*;
use moe_core::{Device, Elem, Error, Host, Kernel, Op, Scalar, ShapeError, run, whole, whole_mut};
use moe_cpu::{Cpu, CpuError, Float, Isa};

/// Fixed values in -1..1.
fn values<T: Scalar<Acc = f32>>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::narrow((state >> 40) as f32 / 8_388_608.0 - 1.0)
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Sizes and options of all five ops.
#[derive(Clone, Debug)]
struct Case {
    dims: ExpertDims,
    offsets: Vec<u32>,
    index: Option<Vec<u32>>,
    out_index: Option<Vec<u32>>,
    bias: bool,
    /// scores given, and whether they come first
    scores: Option<bool>,
    packed: bool,
}

/// A device that runs the ops of this file.
trait Experts<T: Scalar>:
    Kernel<ExpertUp<T>>
    + Kernel<ExpertDown<T>>
    + Kernel<ExpertDownBwd<T>>
    + Kernel<ExpertUpBwd<T>>
    + Kernel<ExpertWgrad<T>>
    + Kernel<PackWeights<T>>
{
}
impl<T: Scalar> Experts<T> for Host {}
impl<T: Float> Experts<T> for Cpu {}

fn upload<D: Device, T: Elem>(device: &D, stream: &D::Stream, values: &[T]) -> D::Owned<T> {
    let mut buffer = device.alloc(stream, values.len()).unwrap();
    device.upload(stream, values, whole_mut::<D, T>(&mut buffer)).unwrap();
    buffer
}

/// Runs all five ops on fixed inputs; their outputs by name, bit for bit in f32.
fn run_all<D: Experts<T>, T: Scalar<Acc = f32>>(device: &D, case: &Case) -> Vec<(&'static str, Vec<f32>)> {
    let Case { dims, bias, scores, packed, .. } = case;
    let (s, up) = (device.stream().unwrap(), dims.up_width());
    let input = |len: usize, seed| upload::<D, T>(device, &s, &values::<T>(len, seed));
    let wide = |len: usize, seed| upload::<D, f32>(device, &s, &values::<f32>(len, seed));
    let (x, dout) = (input(dims.tokens * dims.width, 1), input(dims.tokens * dims.width, 2));
    let plain = [input(dims.experts * up * dims.width, 3), input(dims.experts * dims.width * dims.hidden, 4)];
    let (b13, b2) = (input(dims.experts * up, 5), input(dims.experts * dims.width, 6));
    let weights = wide(dims.slots(), 7);
    let offsets = upload(device, &s, &case.offsets);
    let index = case.index.as_ref().map(|index| upload(device, &s, index));
    let out_index = case.out_index.as_ref().map(|index| upload(device, &s, index));
    let index = || index.as_ref().map(whole::<D, u32>);
    let out_index = || out_index.as_ref().map(whole::<D, u32>);
    let weights = || scores.is_some().then(|| whole::<D, f32>(&weights));
    let first = *scores == Some(true);
    let scratch = |len| device.alloc::<u8>(&s, len).unwrap();
    macro_rules! go {
        ($op:ty, $dims:expr, $args:expr) => {{
            let mut memory = scratch(Kernel::<$op>::scratch(device, &$dims));
            run::<$op, D>(device, &s, &$dims, $args, whole_mut::<D, u8>(&mut memory)).unwrap();
        }};
    }
    let packs = [PackUse::Up, PackUse::Down, PackUse::DownBwd, PackUse::UpBwd].map(|use_| {
        let pack = dims.pack(use_);
        let mut memory = scratch(device.packed_len::<T>(&pack));
        if *packed && device.packed_len::<T>(&pack) > 0 {
            let plain = &plain[usize::from(matches!(use_, PackUse::Down | PackUse::DownBwd))];
            let args =
                PackWeightsArgs { plain: whole::<D, T>(plain), packed: whole_mut::<D, u8>(&mut memory) };
            go!(PackWeights<T>, pack, args);
        }
        memory
    });
    let weight = |at: usize, which: usize| {
        let pack = dims.pack([PackUse::Up, PackUse::Down, PackUse::DownBwd, PackUse::UpBwd][at]);
        if *packed && device.packed_len::<T>(&pack) > 0 {
            Weight::Packed(whole::<D, u8>(&packs[at]))
        } else {
            Weight::Plain(whole::<D, T>(&plain[which]))
        }
    };
    let mut h = input(dims.rows * up, 8);
    let [mut a, mut a_bwd] = [9, 10].map(|seed| input(dims.rows * dims.hidden, seed));
    let [mut y, mut dx] = [11, 12].map(|seed| input(dims.rows * dims.width, seed));
    let (dz, mut dh, left) =
        (input(dims.rows * up, 13), input(dims.rows * up, 14), input(dims.rows * dims.hidden, 15));
    let mut ds = wide(dims.slots(), 16);
    let [mut dw13, mut db13] = [dims.experts * up * dims.width, dims.experts * up].map(|len| wide(len, 17));
    let [mut dw2, mut db2] =
        [dims.experts * dims.width * dims.hidden, dims.experts * dims.width].map(|len| wide(len, 18));

    let args = ExpertUpArgs {
        x: whole::<D, T>(&x),
        index: index(),
        offsets: whole::<D, u32>(&offsets),
        w13: weight(0, 0),
        b13: bias.then(|| whole::<D, T>(&b13)),
        weights: if first { weights() } else { None },
        h: Some(whole_mut::<D, T>(&mut h)),
        a: whole_mut::<D, T>(&mut a),
    };
    go!(ExpertUp<T>, dims, args);
    let args = ExpertDownArgs {
        a: whole::<D, T>(&left),
        offsets: whole::<D, u32>(&offsets),
        w2: weight(1, 1),
        b2: bias.then(|| whole::<D, T>(&b2)),
        out_index: out_index(),
        y: whole_mut::<D, T>(&mut y),
    };
    go!(ExpertDown<T>, dims, args);
    let args = ExpertDownBwdArgs {
        dout: whole::<D, T>(&dout),
        index: index(),
        offsets: whole::<D, u32>(&offsets),
        w2: weight(2, 1),
        b2: bias.then(|| whole::<D, T>(&b2)),
        b13: bias.then(|| whole::<D, T>(&b13)),
        weights: weights(),
        scores_first: first,
        h: whole_mut::<D, T>(&mut dh),
        a: whole_mut::<D, T>(&mut a_bwd),
        ds: scores.map(|_| whole_mut::<D, f32>(&mut ds)),
    };
    go!(ExpertDownBwd<T>, dims, args);
    let args = ExpertUpBwdArgs {
        dz: whole::<D, T>(&dz),
        offsets: whole::<D, u32>(&offsets),
        w13: weight(3, 0),
        weights: if first { weights() } else { None },
        index: index(),
        out_index: out_index(),
        dx: whole_mut::<D, T>(&mut dx),
    };
    go!(ExpertUpBwd<T>, dims, args);
    let wgrad = |left, right, gather_left, accumulate| WgradDims {
        tokens: dims.tokens,
        fan: dims.fan,
        rows: dims.rows,
        experts: dims.experts,
        left,
        right,
        gather_left,
        gather_right: !gather_left,
        accumulate,
    };
    let args = ExpertWgradArgs {
        left: whole::<D, T>(&dout),
        right: whole::<D, T>(&left),
        index: index(),
        offsets: whole::<D, u32>(&offsets),
        right_weights: None,
        bias_weights: weights(),
        dw: whole_mut::<D, f32>(&mut dw2),
        dbias: bias.then(|| whole_mut::<D, f32>(&mut db2)),
    };
    go!(ExpertWgrad<T>, wgrad(dims.width, dims.hidden, true, false), args);
    let args = ExpertWgradArgs {
        left: whole::<D, T>(&dz),
        right: whole::<D, T>(&x),
        index: index(),
        offsets: whole::<D, u32>(&offsets),
        right_weights: weights(),
        bias_weights: None,
        dw: whole_mut::<D, f32>(&mut dw13),
        dbias: bias.then(|| whole_mut::<D, f32>(&mut db13)),
    };
    go!(ExpertWgrad<T>, wgrad(up, dims.width, false, true), args);

    let narrow = |buffer: &D::Owned<T>| {
        let mut host = vec![T::default(); D::len(std::borrow::Borrow::borrow(buffer))];
        device.download(&s, whole::<D, T>(buffer), &mut host).unwrap();
        host.iter().map(|value| value.widen()).collect::<Vec<_>>()
    };
    let wide = |buffer: &D::Owned<f32>| {
        let mut host = vec![0.0; D::len(std::borrow::Borrow::borrow(buffer))];
        device.download(&s, whole::<D, f32>(buffer), &mut host).unwrap();
        host
    };
    vec![
        ("h", narrow(&h)),
        ("a", narrow(&a)),
        ("y", narrow(&y)),
        ("dh", narrow(&dh)),
        ("a'", narrow(&a_bwd)),
        ("ds", wide(&ds)),
        ("dx", narrow(&dx)),
        ("dw2", wide(&dw2)),
        ("db2", wide(&db2)),
        ("dw13", wide(&dw13)),
        ("db13", wide(&db13)),
    ]
}

const ACTIVATIONS: [Activation; 8] = [
    Activation::SwiGlu,
    Activation::GeGlu,
    Activation::GeGluTanh,
    Activation::ClampedSwiGlu { alpha: 1.702, limit: 1.5 },
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::SquaredRelu,
    Activation::Linear,
];

/// Groups with many rows, one, and none; rows beyond the last offset; every activation and option once or more.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (at, activation) in ACTIVATIONS.into_iter().enumerate() {
        for (tokens, width, hidden) in [(23, 17, 21), (150, 40, 96), (9, 300, 130), (1, 1, 1)] {
            let (fan, rows) = (2, 2 * tokens);
            let used = (rows - usize::from(tokens > 1)) as u32;
            let indexed = at % 3 != 1;
            let dims = ExpertDims {
                tokens: if indexed { tokens } else { rows },
                fan: if indexed { fan } else { 1 },
                rows,
                experts: 4,
                width,
                hidden,
                activation,
                bias_shares: 1 + at % 2,
            };
            let shuffled =
                |step: usize| Some((0..rows).map(|row| ((row * step + 1) % rows) as u32).collect());
            cases.push(Case {
                dims,
                offsets: vec![0, used / 3, used / 3, used - 1, used],
                index: if indexed { shuffled(if rows % 7 == 0 { 5 } else { 7 }) } else { None },
                out_index: if at % 2 == 0 { shuffled(if rows % 11 == 0 { 13 } else { 11 }) } else { None },
                bias: at % 4 < 3,
                scores: [Some(false), None, Some(true)][(at + tokens) % 3],
                packed: at % 2 == 0,
            });
        }
    }
    cases
}

fn compare<T: Float>(tolerance: f32) {
    for case in cases() {
        let want = run_all::<Host, T>(&Host, &Case { packed: false, ..case.clone() });
        for isa in Isa::available() {
            let got = run_all::<Cpu, T>(&Cpu::with_isa(2, isa).unwrap(), &case);
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                let largest = want.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                for (at, (got, want)) in got.iter().zip(want).enumerate() {
                    let allowed = tolerance * (want.abs() + 0.1 * largest);
                    assert!(
                        (got - want).abs() <= allowed,
                        "{isa:?} {case:?}: {name}[{at}] is {got}, wanted {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn f32_agrees_with_the_reference() {
    compare::<f32>(1e-5);
}

#[test]
fn bf16_agrees_with_the_reference() {
    compare::<bf16>(1.6e-2);
}

#[test]
fn f16_agrees_with_the_reference() {
    compare::<f16>(2e-3);
}

#[test]
fn no_bit_depends_on_threads_or_on_packing() {
    for case in cases() {
        for isa in Isa::available() {
            let bits = |threads, packed| {
                let all = run_all::<Cpu, bf16>(
                    &Cpu::with_isa(threads, isa).unwrap(),
                    &Case { packed, ..case.clone() },
                );
                all.into_iter().flat_map(|(_, values)| values).map(f32::to_bits).collect::<Vec<_>>()
            };
            let one = bits(1, true);
            assert!(one == bits(3, true) && one == bits(4, false), "{isa:?} {case:?}");
        }
    }
}

#[test]
fn an_out_index_that_names_a_row_twice_is_an_error() {
    let case = cases().into_iter().find(|case| case.out_index.is_some()).unwrap();
    let (cpu, dims) = (Cpu::with_threads(1).unwrap(), case.dims);
    let a = vec![0.0_f32; dims.rows * dims.hidden];
    let w2 = vec![0.0; dims.experts * dims.width * dims.hidden];
    let (twice, mut y) = (vec![1; dims.rows], vec![0.0; dims.rows * dims.width]);
    let mut scratch = vec![0; Kernel::<ExpertDown<f32>>::scratch(&cpu, &dims)];
    let args = ExpertDownArgs::<Cpu, f32> {
        a: moe_core::View::of(&a),
        offsets: moe_core::View::of(&case.offsets),
        w2: Weight::Plain(moe_core::View::of(&w2)),
        b2: None,
        out_index: Some(moe_core::View::of(&twice)),
        y: moe_core::ViewMut::of(&mut y),
    };
    let result = run::<ExpertDown<f32>, Cpu>(&cpu, &(), &dims, args, moe_core::ViewMut::of(&mut scratch));
    let op = ExpertDown::<f32>::ID;
    let want = ShapeError::Combination { op, what: "out_index", why: "names a row twice" };
    assert!(matches!(result, Err(Error::Device(CpuError::Shape(got))) if got == want));
}
