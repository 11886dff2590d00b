//! Few tokens: one launch for all of a layer, blocks that wait for each other, and the same bits however they are launched.

use crate::rig::{Rig, cuda, matrix};
use half::{bf16, f16};
use moe_core::ops::{Decode, GateMath};
use moe_core::{MoeConfig, MoeDevice, Op, OpId, Scalar, Sizes};
use moe_cuda::Cuda;
use std::thread;

const WIDTH: usize = 1064;

fn rig<T: Scalar<Acc = f32>>(device: &Cuda, tokens: usize, gate: GateMath) -> Rig<T>
where
    Cuda: MoeDevice<T>,
{
    let sizes = Sizes { width: WIDTH, hidden: 520, experts: 40, top_k: 5 };
    let mut config = MoeConfig::new(sizes).expect("a good layer");
    config.rule.gate = gate;
    Rig::with_room(device, &config, tokens, tokens)
}

fn path<T: Scalar<Acc = f32>>(rig: &Rig<T>, op: OpId) -> &'static str
where
    Cuda: MoeDevice<T>,
{
    let counts = rig.runner.trace().counts();
    counts.iter().find(|(id, ..)| *id == op).map_or("none", |(_, path, _)| path.0)
}

#[test]
fn few_tokens_take_one_launch_on_hopper() {
    let Some(device) = cuda("few_tokens_take_one_launch_on_hopper") else { return };
    if device.capability().0 != 9 {
        println!("few_tokens_take_one_launch_on_hopper: no Hopper GPU");
        return;
    }
    for gate in [GateMath::Exact, GateMath::Native] {
        for (tokens, want) in [(1, "together"), (8, "together"), (9, "route, together")] {
            let mut rig = rig::<bf16>(device, tokens, gate);
            rig.forward().expect("forward");
            assert_eq!(path(&rig, Decode::<bf16>::ID), want);
            assert_eq!(rig.runner.trace().counts().len(), 1);
        }
    }
}

/// Inference takes other kernels than training; both round where the definition does.
fn inference_agrees<T: Scalar<Acc = f32>>(device: &Cuda, gate: GateMath, bound: f64)
where
    Cuda: MoeDevice<T>,
{
    for tokens in [1, 2, 3, 7, 64, 100] {
        let mut rig = rig::<T>(device, tokens, gate);
        rig.forward().expect("forward");
        let few: Vec<T> = rig.read(rig.y.view());
        let figures = rig.runner.forward_figures().expect("figures");
        let Rig { layer, runner, saved, x, y, .. } = &mut rig;
        runner.forward_train(layer, x, saved, y).expect("forward");
        assert_eq!(
            figures.tokens_per_expert,
            rig.runner.figures(&rig.saved).expect("figures").tokens_per_expert
        );
        let many: Vec<T> = rig.read(rig.y.view());
        let (mut difference, mut norm) = (0.0, 0.0);
        for (few, many) in few.iter().zip(&many) {
            let (few, many) = (f64::from(few.widen()), f64::from(many.widen()));
            difference += (few - many).powi(2);
            norm += many.powi(2);
        }
        let error = (difference / norm).sqrt();
        assert!(error < bound, "{tokens} tokens: {error:e}");
    }
}

#[test]
fn inference_of_few_tokens_is_that_of_a_training_forward() {
    let Some(device) = cuda("inference_of_few_tokens_is_that_of_a_training_forward") else { return };
    for gate in [GateMath::Exact, GateMath::Native] {
        inference_agrees::<bf16>(device, gate, 4e-3);
        inference_agrees::<f16>(device, gate, 5e-4);
        inference_agrees::<f32>(device, gate, 1e-6);
    }
}

#[test]
fn a_thousand_decoded_tokens_have_the_same_bits() {
    let Some(device) = cuda("a_thousand_decoded_tokens_have_the_same_bits") else { return };
    for tokens in [1, 8, 64] {
        let mut rig = rig::<bf16>(device, tokens, GateMath::Exact);
        rig.forward().expect("forward");
        let want: Vec<bf16> = rig.read(rig.y.view());
        for _ in 0..1000 {
            rig.forward().expect("forward");
        }
        assert!(rig.read(rig.y.view()) == want, "{tokens} tokens");
        let stream = rig.runner.session().stream().clone();
        let mut graph = stream.capture(|| rig.forward()).expect("a graph");
        rig.runner.write(matrix::<bf16>(9, tokens, WIDTH).view(), &mut rig.y).expect("y");
        for _ in 0..100 {
            graph.replay().expect("a replay");
        }
        assert!(rig.read(rig.y.view()) == want, "{tokens} tokens, replayed");
    }
}

/// All blocks of a launch wait for each other; two launches that each had a part of the GPU would wait for ever.
#[test]
fn streams_decode_side_by_side() {
    let Some(device) = cuda("streams_decode_side_by_side") else { return };
    let alone = |tokens| {
        let mut rig = rig::<bf16>(device, tokens, GateMath::Native);
        rig.forward().expect("forward");
        rig.read::<bf16>(rig.y.view())
    };
    let wanted = [1, 2, 8].map(|tokens| (tokens, alone(tokens)));
    thread::scope(|scope| {
        for (tokens, want) in &wanted {
            scope.spawn(move || {
                let mut rig = rig::<bf16>(device, *tokens, GateMath::Native);
                for _ in 0..500 {
                    rig.forward().expect("forward");
                }
                assert!(rig.read::<bf16>(rig.y.view()) == *want, "{tokens} tokens");
            });
        }
    });
}
