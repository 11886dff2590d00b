//! Every kernel at odd sizes: each sample of the conformance suite launched once, op by op and type by type, and a few sizes more
//! for kernels that only those reach. Results are the suite's business; a tool that looks for races and stray accesses
//! (moe-cuda/sanitize) has small programs to look at here, and one test says that they leave no kernel out.

use crate::rig::{Rig, cuda};
use half::{bf16, f16};
use moe_core::ops::{
    AdamW, BiasUpdate, Combine, Decode, ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad,
    GateBwd, GateBwdDims, GateMath, Gather, Jitter, Merge, PackDims, PackUse, PackWeights, Route, RouteBwd,
    RouteDims, RouteRule, RouteStats, Sort, SumSquares,
};
use moe_core::{Kernel, MoeConfig, MoeDevice, Sizes};
use moe_cuda::{Cuda, Float};
use moe_tests::{Case, Random, Sample, Setup, Tolerance, launch};

/// Launches every sample of an op.
fn samples<O, T>(device: &Cuda)
where
    O: Case,
    T: Float,
    Cuda: Kernel<O> + Kernel<PackWeights<T>>,
{
    for sample in &O::samples(&mut Random::new(7)) {
        launch::<O, T, _>(device, sample, Setup::default()).expect(&sample.label);
    }
}

/// Route takes the tile that is done first on this device's multiprocessors, of which a Hopper GPU has 132. Lines of 9 elements are none
/// for the kernels of few tokens, lines of 8 are.
fn gates<T: Float>(device: &Cuda) {
    let exact = [
        (16384, 9, 128),
        (8448, 9, 128),
        (25344, 9, 32),
        (4224, 9, 128),
        (8192, 9, 8),
        (2112, 9, 16),
        (1, 8, 128),
        (64, 8, 128),
        (256, 8, 128),
        (5, 9, 600),
    ];
    let native = [(1, 8, 128), (8192, 8, 64), (8192, 8, 128), (16384, 8, 128)];
    let exact = exact.map(|sizes| (sizes, GateMath::Exact));
    let native = native.map(|sizes| (sizes, GateMath::Native));
    let mut random = Random::new(8);
    for ((tokens, width, experts), gate) in exact.into_iter().chain(native) {
        let rule = RouteRule { gate, ..RouteRule::default() };
        let dims = RouteDims { tokens, width, experts, top_k: 2, rule };
        let any = Tolerance::EXACT;
        let sample = Sample::<Route<T>>::new("a tile", dims)
            .input("x", random.values::<T>(tokens * width))
            .weight("gate", random.values::<T>(experts * width), dims.pack())
            .output::<f32>("logits", tokens * experts, any)
            .output::<u32>("ids", tokens * 2, any)
            .output::<f32>("weights", tokens * 2, any)
            .output::<u32>("non_finite", 1, any);
        launch::<Route<T>, T, _>(device, &sample, Setup::default()).expect("a launch");
    }
}

/// GateBwd's tiles follow from the number of experts, and from jitter.
fn gate_gradients<T: Float>(device: &Cuda) {
    let mut random = Random::new(9);
    for (tokens, width, experts, amplitude) in
        [(70, 130, 20, None), (70, 130, 72, None), (70, 130, 72, Some(0.1)), (1100, 72, 40, None)]
    {
        let jitter = amplitude.map(|amplitude| Jitter { amplitude });
        let dims = GateBwdDims { tokens, width, experts, jitter, accumulate: false };
        let (pack, any) =
            (PackDims { groups: 1, rows: experts, cols: width, use_: PackUse::Gate }, Tolerance::EXACT);
        let sample = Sample::<GateBwd<T>>::new("a tile", dims)
            .input("dlogits", random.values::<f32>(tokens * experts))
            .input("x", random.values::<T>(tokens * width))
            .weight("gate", random.values::<T>(experts * width), pack)
            .maybe("stamp", jitter.map(|_| vec![1_u32; moe_core::ops::STAMP]))
            .output::<T>("dx", tokens * width, any)
            .output::<f32>("dgate", experts * width, any);
        launch::<GateBwd<T>, T, _>(device, &sample, Setup::default()).expect("a launch");
    }
}

/// A training step whose products go through all stages of a tile's ring and on: the suite's samples end before.
fn steps<T: Float>(device: &Cuda)
where
    Cuda: MoeDevice<T>,
{
    let config =
        MoeConfig::new(Sizes { width: 392, hidden: 328, experts: 4, top_k: 2 }).expect("a good layer");
    Rig::<T>::with_room(device, &config, 700, 700).step();
}

macro_rules! types {
    ($($name:ident: $sweep:path),*) => {
        $(#[test]
        fn $name() {
            let test = concat!(module_path!(), "::", stringify!($name));
            if let Some(device) = cuda(test) {
                $sweep(device);
            }
        })*
    };
}

/// A test per op and storage type, and `all` of them on one device.
macro_rules! sweeps {
    ($($name:ident: $op:ident),* $(,)?) => {
        $(mod $name {
            use super::*;
            types!(in_f32: samples::<$op<f32>, f32>, in_bf16: samples::<$op<bf16>, bf16>, in_f16: samples::<$op<f16>, f16>);
        })*
        mod merge {
            use super::*;
            types!(once: samples::<Merge, f32>);
        }
        mod route_at_all_sizes {
            use super::*;
            types!(in_f32: gates::<f32>, in_bf16: gates::<bf16>, in_f16: gates::<f16>);
        }
        mod gate_bwd_at_all_sizes {
            use super::*;
            types!(in_f32: gate_gradients::<f32>, in_bf16: gate_gradients::<bf16>, in_f16: gate_gradients::<f16>);
        }
        mod step_of_many_stages {
            use super::*;
            types!(in_f32: steps::<f32>, in_bf16: steps::<bf16>, in_f16: steps::<f16>);
        }

        fn all(device: &Cuda) {
            $(
                samples::<$op<f32>, f32>(device);
                samples::<$op<bf16>, bf16>(device);
                samples::<$op<f16>, f16>(device);
            )*
            samples::<Merge, f32>(device);
            gates::<f32>(device);
            gates::<bf16>(device);
            gates::<f16>(device);
            gate_gradients::<f32>(device);
            gate_gradients::<bf16>(device);
            gate_gradients::<f16>(device);
        }
    };
}

sweeps! {
    route: Route,
    route_stats: RouteStats,
    route_bwd: RouteBwd,
    gate_bwd: GateBwd,
    sort: Sort,
    gather: Gather,
    expert_up: ExpertUp,
    expert_down: ExpertDown,
    expert_down_bwd: ExpertDownBwd,
    expert_up_bwd: ExpertUpBwd,
    expert_wgrad: ExpertWgrad,
    combine: Combine,
    decode: Decode,
    adamw: AdamW,
    sum_squares: SumSquares,
    bias_update: BiasUpdate,
}

/// What only GPUs older than Hopper launch.
const OLDER: [&str; 2] = ["gate_bwd_dx_bf16", "gate_bwd_dx_f16"];

#[test]
fn no_kernel_of_a_hopper_gpu_is_left_out() {
    let Some(shared) = cuda("no_kernel_of_a_hopper_gpu_is_left_out") else { return };
    if shared.capability().0 != 9 {
        return moe_tests::skipped("no_kernel_of_a_hopper_gpu_is_left_out", "this GPU is none");
    }
    // A device of its own, so that no other test's launches are counted.
    let device = Cuda::new().expect("it was opened before");
    all(&device);
    let mut never: Vec<_> = device.kernels().filter(|(_, launches)| *launches == 0).collect();
    never.retain(|(kernel, _)| !OLDER.contains(kernel));
    assert!(never.is_empty(), "never launched: {never:?}");
}
