//! Route has the bits of the reference.

use super::{below, bits, cpus, launch, values};
use half::{bf16, f16};
use moe_core::ops::{
    Jitter, PackWeights, PackWeightsArgs, Route, RouteArgs, RouteDims, RouteRule, ScoreFunction, Selection,
    Stamp, Weight,
};
use moe_core::{Device, Host, Scalar, View, ViewMut};
use moe_cpu::{Cpu, Float};

struct Case<T> {
    dims: RouteDims,
    x: Vec<T>,
    gate: Vec<T>,
    gate_bias: Option<Vec<T>>,
    selection_bias: Option<Vec<f32>>,
    forced: Option<Vec<u32>>,
}

impl<T: Float> Case<T> {
    fn new(sizes: [usize; 4], rule: RouteRule) -> Self {
        let [tokens, width, experts, top_k] = sizes;
        Self {
            dims: RouteDims { tokens, width, experts, top_k, rule },
            x: values(tokens * width, 1),
            gate: values(experts * width, 2),
            gate_bias: None,
            selection_bias: None,
            forced: None,
        }
    }

    /// Asserts that Host and every Cpu agree, with the gate plain and packed.
    fn agree(&self) {
        let stamp = Stamp { seed: 3, step: 1 << 33, layer: 2, first_token: 77 }.words();
        let RouteDims { tokens, experts, top_k, .. } = self.dims;
        macro_rules! route {
            ($device:expr, $gate:expr) => {{
                let (mut logits, mut bad) = (vec![9.0; tokens * experts], [9]);
                let (mut ids, mut weights) = (vec![9; tokens * top_k], vec![9.0; tokens * top_k]);
                let args = RouteArgs {
                    x: View::of(&self.x),
                    gate: $gate,
                    gate_bias: self.gate_bias.as_deref().map(View::of),
                    selection_bias: self.selection_bias.as_deref().map(View::of),
                    forced_ids: self.forced.as_deref().map(View::of),
                    stamp: Some(View::of(&stamp)),
                    logits: ViewMut::of(&mut logits),
                    ids: ViewMut::of(&mut ids),
                    weights: ViewMut::of(&mut weights),
                    non_finite: ViewMut::of(&mut bad),
                };
                launch!($device, Route<T>, self.dims, args).unwrap();
                (bits(&logits), ids, bits(&weights), bad)
            }};
        }
        let want = route!(&Host, Weight::Plain(View::of(&self.gate)));
        for cpu in cpus() {
            assert_eq!(route!(&cpu, Weight::Plain(View::of(&self.gate))), want, "{cpu:?} {:?}", self.dims);
            let packed = pack(&cpu, &self.dims, &self.gate);
            assert_eq!(
                route!(&cpu, Weight::Packed(View::of(&packed))),
                want,
                "{cpu:?} packed {:?}",
                self.dims
            );
        }
    }
}

pub(super) fn pack<T: Float>(cpu: &Cpu, dims: &RouteDims, gate: &[T]) -> moe_cpu::Buffer<u8> {
    let mut packed = cpu.alloc::<u8>(&(), cpu.packed_len::<T>(&dims.pack())).unwrap();
    let args = PackWeightsArgs { plain: View::of(gate), packed: ViewMut::of(&mut packed) };
    launch!(cpu, PackWeights<T>, dims.pack(), args).unwrap();
    packed
}

const SIZES: [[usize; 4]; 9] = [
    [0, 8, 4, 2],
    [1, 1, 1, 1],
    [3, 0, 5, 2],
    [1, 300, 9, 9],
    [7, 257, 33, 33],
    [13, 70, 40, 3],
    [101, 511, 17, 2],
    [64, 33, 256, 8],
    [300, 12, 8, 2],
];

fn score(score: ScoreFunction) -> RouteRule {
    RouteRule { score, ..RouteRule::default() }
}

#[test]
fn odd_sizes() {
    for sizes in SIZES {
        Case::<f32>::new(sizes, score(ScoreFunction::Softmax)).agree();
        Case::<bf16>::new(sizes, score(ScoreFunction::Sigmoid)).agree();
        Case::<f16>::new(sizes, score(ScoreFunction::SoftmaxTopK)).agree();
    }
}

#[test]
fn every_rule() {
    for function in [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid] {
        let plain = score(function);
        let normalized = RouteRule { normalize: true, scale: 2.5, ..plain };
        let grouped = RouteRule { groups: 12, groups_kept: 3, ..normalized };
        let single = RouteRule { groups: 36, groups_kept: 7, ..plain };
        let jittered = RouteRule { jitter: Some(Jitter { amplitude: 0.1 }), ..grouped };
        let robin = RouteRule { selection: Selection::RoundRobin, ..normalized };
        for rule in [plain, normalized, grouped, single, jittered, robin] {
            let mut case = Case::<bf16>::new([29, 40, 36, 5], rule);
            case.agree();
            case.gate_bias = Some(values(36, 5));
            case.selection_bias = Some(values(36, 6));
            case.agree();
            case.forced = Some(below(38, 29 * 5, 7));
            case.agree();
        }
    }
}

#[test]
fn ties_and_zeros_of_both_signs() {
    for (groups, groups_kept) in [(1, 1), (8, 3)] {
        let rule = RouteRule { groups, groups_kept, ..score(ScoreFunction::SoftmaxTopK) };
        let mut case = Case::<f32>::new([9, 4, 16, 6], rule);
        case.x.iter_mut().for_each(|x| *x = x.signum());
        case.gate.iter_mut().for_each(|gate| *gate = gate.signum());
        case.selection_bias = Some([0.0, -0.0].repeat(8));
        case.agree();
    }
}

#[test]
fn logits_that_are_no_numbers() {
    for function in [ScoreFunction::Softmax, ScoreFunction::SoftmaxTopK, ScoreFunction::Sigmoid] {
        for groups_kept in [1, 2, 6] {
            let rule = RouteRule { groups: 6, groups_kept, normalize: true, ..score(function) };
            let mut case = Case::<f32>::new([20, 16, 36, 6], rule);
            let mut bias = vec![0.0; 36];
            bias[3] = f32::NAN;
            (bias[4], bias[11]) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            bias[30..36].fill(f32::NAN);
            case.selection_bias = Some(bias.clone());
            case.agree();
            case.gate_bias = Some(bias);
            case.agree();
            case.x[5] = f32::NAN;
            case.x[40] = f32::INFINITY;
            case.x[70] = f32::MAX;
            case.agree();
            case.gate_bias = Some(vec![f32::NEG_INFINITY; 36]);
            case.agree();
        }
    }
}

#[test]
fn subnormal_products_are_kept() {
    let mut case = Case::<f32>::new([5, 9, 6, 2], score(ScoreFunction::SoftmaxTopK));
    case.x.iter_mut().for_each(|x| *x *= 1e-22);
    case.gate.iter_mut().for_each(|gate| *gate *= 1e-20);
    case.agree();
    assert!(case.x[0].widen() != 0.0);
}
