//! The native gate: a token's bits do not depend on how many there are, though the tile does.

use crate::rig::cuda;
use half::bf16;
use moe_core::ops::{GateMath, Route, RouteDims, RouteRule};
use moe_cuda::Cuda;
use moe_tests::{Outputs, Random, Sample, Setup, Tolerance, launch};

const WIDTH: usize = 1032;

fn route(device: &Cuda, experts: usize, x: &[bf16], gate: &[bf16]) -> Outputs {
    let rule = RouteRule { gate: GateMath::Native, ..RouteRule::default() };
    let dims = RouteDims { tokens: x.len() / WIDTH, width: WIDTH, experts, top_k: 4, rule };
    let sample = Sample::<Route<bf16>>::new("native", dims)
        .input("x", x.to_vec())
        .weight("gate", gate.to_vec(), dims.pack())
        .output::<f32>("logits", dims.tokens * experts, Tolerance::EXACT)
        .output::<u32>("ids", dims.tokens * 4, Tolerance::EXACT)
        .output::<f32>("weights", dims.tokens * 4, Tolerance::EXACT)
        .output::<u32>("non_finite", 1, Tolerance::EXACT);
    launch::<Route<bf16>, bf16, _>(device, &sample, Setup::default()).expect("a launch")
}

#[test]
fn all_tiles_of_the_native_gate_give_the_same_bits() {
    let Some(device) = cuda("all_tiles_of_the_native_gate_give_the_same_bits") else { return };
    let (many, few) = (4288, 70);
    let mut random = Random::new(5);
    let x = random.values::<bf16>(many * WIDTH);
    for experts in [64, 128, 256] {
        let gate = random.values::<bf16>(experts * WIDTH);
        let all = route(device, experts, &x, &gate);
        let last = route(device, experts, &x[(many - few) * WIDTH..], &gate);
        let paths = (all.path, last.path);
        assert_eq!(
            all.get::<f32>("logits")[(many - few) * experts..],
            last.get::<f32>("logits"),
            "{paths:?}"
        );
        assert_eq!(all.get::<u32>("ids")[(many - few) * 4..], last.get::<u32>("ids"), "{paths:?}");
    }
}
