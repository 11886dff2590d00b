//! The gate: a token's bits do not depend on how many there are, though the kernel does; and its gradients in parts.

use crate::rig::cuda;
use half::bf16;
use moe_core::Host;
use moe_core::ops::{
    Activation, Decode, DecodeDims, ExpertDims, GateBwd, GateBwdDims, GateMath, PackDims, PackUse, Route,
    RouteDims, RouteRule,
};
use moe_cuda::Cuda;
use moe_tests::{Outputs, Random, Sample, Setup, Tolerance, Values, launch};

const WIDTH: usize = 1032;

fn route(device: &Cuda, experts: usize, x: &[bf16], gate: &[bf16], math: GateMath) -> Outputs {
    let rule = RouteRule { gate: math, ..RouteRule::default() };
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
        let all = route(device, experts, &x, &gate, GateMath::Native);
        let last = route(device, experts, &x[(many - few) * WIDTH..], &gate, GateMath::Native);
        let paths = (all.path, last.path);
        assert_eq!(
            all.get::<f32>("logits")[(many - few) * experts..],
            last.get::<f32>("logits"),
            "{paths:?}"
        );
        assert_eq!(all.get::<u32>("ids")[(many - few) * 4..], last.get::<u32>("ids"), "{paths:?}");
    }
}

/// The router of inference for few tokens.
fn decode(device: &Cuda, experts: usize, x: &[bf16], gate: &[bf16], math: GateMath) -> Outputs {
    let (tokens, fan, hidden) = (x.len() / WIDTH, 4, 8);
    let rows = tokens * fan;
    let activation = Activation::SwiGlu;
    let of = ExpertDims { tokens, fan, rows, experts, width: WIDTH, hidden, activation, bias_shares: 1 };
    let rule = RouteRule { gate: math, ..RouteRule::default() };
    let dims = DecodeDims { experts: of, rule, scores_first: false };
    let (near, exact) = (Tolerance::stored::<bf16>(), Tolerance::EXACT);
    let sample = Sample::<Decode<bf16>>::new("few tokens", dims)
        .input("x", x.to_vec())
        .weight("gate", gate.to_vec(), dims.route().pack())
        .output::<f32>("logits", tokens * experts, exact)
        .output::<u32>("ids", rows, exact)
        .output::<f32>("weights", rows, exact)
        .output::<u32>("non_finite", 1, exact)
        .weight("w13", vec![bf16::ZERO; experts * 2 * hidden * WIDTH], of.pack(PackUse::Up))
        .weight("w2", vec![bf16::ZERO; experts * WIDTH * hidden], of.pack(PackUse::Down))
        .output::<u32>("counts", experts, exact)
        .output::<u32>("dropped", 1, exact)
        .output::<bf16>("out", tokens * WIDTH, near)
        .room::<u32>("offsets", experts + 1)
        .room::<u32>("row_of_slot", rows)
        .room::<u32>("slot_of_row", rows)
        .room::<bf16>("a", rows * hidden)
        .room::<bf16>("y", rows * WIDTH);
    launch::<Decode<bf16>, bf16, _>(device, &sample, Setup::default()).expect("a launch")
}

#[test]
fn few_tokens_are_routed_as_many_are() {
    let Some(device) = cuda("few_tokens_are_routed_as_many_are") else { return };
    let mut random = Random::new(6);
    for math in [GateMath::Exact, GateMath::Native] {
        for (tokens, experts) in [(1, 128), (8, 128), (3, 300), (8, 512), (9, 128)] {
            let x = random.values::<bf16>(tokens * WIDTH);
            let gate = random.values::<bf16>(experts * WIDTH);
            let (many, few) =
                (route(device, experts, &x, &gate, math), decode(device, experts, &x, &gate, math));
            let case = format!("{math:?}, {tokens} tokens, {experts} experts, {:?}", few.path);
            assert_eq!(many.get::<f32>("logits"), few.get::<f32>("logits"), "{case}");
            assert_eq!(many.get::<u32>("ids"), few.get::<u32>("ids"), "{case}");
            assert_eq!(many.get::<f32>("weights"), few.get::<f32>("weights"), "{case}");
        }
    }
}

/// Parts of infinity would be infinity and NaN.
#[test]
fn gradients_that_are_not_finite_stay_what_they_are() {
    let Some(device) = cuda("gradients_that_are_not_finite_stay_what_they_are") else { return };
    let (tokens, width, experts) = (300, 16, 8);
    let dims = GateBwdDims { tokens, width, experts, jitter: None, accumulate: false };
    let pack = PackDims { groups: 1, rows: experts, cols: width, use_: PackUse::Gate };
    let (mut random, near) = (Random::new(3), Tolerance::gradient::<bf16>());
    let mut dlogits = random.values::<f32>(tokens * experts);
    for (at, value) in [(3, f32::INFINITY), (77, f32::NEG_INFINITY), (1500, f32::NAN), (2001, f32::MAX)] {
        dlogits[at] = value;
    }
    let sample = Sample::<GateBwd<bf16>>::new("not finite", dims)
        .input("dlogits", dlogits)
        .input("x", random.values::<bf16>(tokens * width))
        .weight("gate", random.values::<bf16>(experts * width), pack)
        .output::<bf16>("dx", tokens * width, near)
        .output::<f32>("dgate", experts * width, near);
    let want = launch::<GateBwd<bf16>, bf16, _>(&Host, &sample, Setup::default()).expect("a good sample");
    let got = launch::<GateBwd<bf16>, bf16, _>(device, &sample, Setup::default()).expect("a launch");
    if device.capability().0 == 9 {
        assert_eq!(got.path.0, "three parts, hopper 128x256");
    }
    let dx = |of: &Outputs| Values::of(of.get::<bf16>("dx"));
    assert_eq!(near.compare(&dx(&want), &dx(&got)), None, "dx");
    let dgate = |of: &Outputs| Values::of(of.get::<f32>("dgate"));
    assert_eq!(near.compare(&dgate(&want), &dgate(&got)), None, "dgate");
}
