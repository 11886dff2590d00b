//! Few tokens: two launches for one token, blocks that wait for each other, and the same bits however they are launched.

use crate::rig::{Rig, cuda, matrix};
use half::{bf16, f16};
use moe_core::ops::{Decode, Route};
use moe_core::{MoeConfig, MoeDevice, Op, OpId, Scalar, Sizes};
use moe_cuda::Cuda;
use std::thread;

fn config() -> MoeConfig {
    MoeConfig::new(Sizes { width: 1064, hidden: 520, experts: 40, top_k: 5 }).expect("a good layer")
}

fn rig<T: Scalar<Acc = f32>>(device: &Cuda, tokens: usize) -> Rig<T>
where
    Cuda: MoeDevice<T>,
{
    Rig::with_room(device, &config(), tokens, tokens)
}

fn path<T: Scalar<Acc = f32>>(rig: &Rig<T>, op: OpId) -> &'static str
where
    Cuda: MoeDevice<T>,
{
    let counts = rig.runner.trace().counts();
    counts.iter().find(|(id, ..)| *id == op).map_or("none", |(_, path, _)| path.0)
}

#[test]
fn one_token_takes_two_launches_on_hopper() {
    let Some(device) = cuda("one_token_takes_two_launches_on_hopper") else { return };
    if device.capability().0 != 9 {
        println!("one_token_takes_two_launches_on_hopper: no Hopper GPU");
        return;
    }
    for (tokens, want) in [(1, "at once 1x32"), (2, "at once 2x32")] {
        let mut rig = rig::<bf16>(device, tokens);
        rig.forward().expect("forward");
        assert_eq!(path(&rig, Route::<bf16>::ID), want);
        assert_eq!(path(&rig, Decode::<bf16>::ID), "together");
        assert_eq!(rig.runner.trace().counts().len(), 2);
    }
}

/// Inference takes other kernels than training; both round where the definition does.
fn inference_agrees<T: Scalar<Acc = f32>>(device: &Cuda, bound: f64)
where
    Cuda: MoeDevice<T>,
{
    for tokens in [1, 2, 3, 7, 64, 100] {
        let mut rig = rig::<T>(device, tokens);
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
    inference_agrees::<bf16>(device, 4e-3);
    inference_agrees::<f16>(device, 5e-4);
    inference_agrees::<f32>(device, 1e-6);
}

#[test]
fn a_thousand_decoded_tokens_have_the_same_bits() {
    let Some(device) = cuda("a_thousand_decoded_tokens_have_the_same_bits") else { return };
    for tokens in [1, 8, 64] {
        let mut rig = rig::<bf16>(device, tokens);
        rig.forward().expect("forward");
        let want: Vec<bf16> = rig.read(rig.y.view());
        for _ in 0..1000 {
            rig.forward().expect("forward");
        }
        assert!(rig.read(rig.y.view()) == want, "{tokens} tokens");
        let stream = rig.runner.session().stream().clone();
        let mut graph = stream.capture(|| rig.forward()).expect("a graph");
        rig.runner.write(matrix::<bf16>(9, tokens, config().width).view(), &mut rig.y).expect("y");
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
        let mut rig = rig::<bf16>(device, tokens);
        rig.forward().expect("forward");
        rig.read::<bf16>(rig.y.view())
    };
    let wanted = [1, 2, 8].map(|tokens| (tokens, alone(tokens)));
    thread::scope(|scope| {
        for (tokens, want) in &wanted {
            scope.spawn(move || {
                let mut rig = rig::<bf16>(device, *tokens);
                for _ in 0..500 {
                    rig.forward().expect("forward");
                }
                assert!(rig.read::<bf16>(rig.y.view()) == *want, "{tokens} tokens");
            });
        }
    });
}
