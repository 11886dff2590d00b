//! Steps repeat bit for bit, whatever was in the workspace before.

use crate::rig::{Rig, TOKENS, cuda, full, matrix, plain, tokens};
use half::{bf16, f16};
use moe_core::ndarray::Array2;
use moe_core::{Accum, AdamW, Error, MoeConfig, MoeDevice, Scalar, Sizes};
use moe_cuda::{Cuda, CudaError};

fn repeats<T: Scalar<Acc = f32>>(device: &Cuda, config: &MoeConfig)
where
    Cuda: MoeDevice<T>,
{
    let mut rig = Rig::<T>::new(device, config);
    let first = rig.step();
    for nth in 1..100 {
        assert!(rig.step() == first, "step {nth} has other bits than the first");
    }
}

#[test]
fn a_hundred_equal_steps_have_equal_bits() {
    let Some(device) = cuda("a_hundred_equal_steps_have_equal_bits") else { return };
    for config in [plain(), full()] {
        repeats::<f32>(device, &config);
        repeats::<bf16>(device, &config);
        repeats::<f16>(device, &config);
    }
}

fn trained<T: Scalar<Acc = f32>>(device: &Cuda) -> Vec<Vec<u8>>
where
    Cuda: MoeDevice<T>,
{
    let mut rig = Rig::<T>::new(device, &full());
    let mut adam = AdamW::new(&rig.layer).expect("an optimizer");
    for seed in 0..20 {
        rig.write(&tokens(seed, TOKENS));
        rig.step();
        adam.step(&mut rig.runner, &mut rig.layer, &mut rig.grads, 1e-2).expect("an optimizer step");
    }
    rig.runner.session().sync().expect("no fault");
    rig.layer.state().expect("a readable layer").into_iter().map(|tensor| tensor.bytes).collect()
}

#[test]
fn training_repeats_bit_for_bit() {
    let Some(device) = cuda("training_repeats_bit_for_bit") else { return };
    assert!(trained::<f32>(device) == trained::<f32>(device), "f32");
    assert!(trained::<bf16>(device) == trained::<bf16>(device), "bf16");
}

fn leftovers<T: Scalar<Acc = f32>>(device: &Cuda, config: &MoeConfig)
where
    Cuda: MoeDevice<T>,
{
    let count = 37;
    let want = Rig::<T>::with_room(device, config, count, TOKENS).step();
    // NaN everywhere in the workspace, by a larger call of NaN tokens.
    let mut rig = Rig::<T>::with_room(device, config, count, TOKENS);
    let nan = Array2::from_elem((TOKENS, crate::rig::WIDTH), T::narrow(f32::of(f64::NAN)));
    let large = rig.runner.upload(nan.view()).expect("tokens");
    let (mut y, mut dx) = (rig.runner.like(&large).expect("y"), rig.runner.like(&large).expect("dx"));
    let Rig { layer, runner, saved, grads, .. } = &mut rig;
    runner.forward_train(layer, &large, saved, &mut y).expect("forward");
    runner.backward(layer, &large, saved, &large, &mut dx, grads).expect("backward");
    assert!(rig.step() == want, "what a larger call left behind is seen");
}

#[test]
fn rows_beyond_the_used_ones_are_not_read() {
    let Some(device) = cuda("rows_beyond_the_used_ones_are_not_read") else { return };
    for config in [plain(), full()] {
        leftovers::<f32>(device, &config);
        leftovers::<bf16>(device, &config);
    }
}

/// A size at which 16-bit types take the path of the newest GPUs.
const MANY: usize = 512;

fn large() -> MoeConfig {
    MoeConfig::new(Sizes { width: 512, hidden: 256, experts: 8, top_k: 2 }).expect("a good layer")
}

fn repeats_long<T: Scalar<Acc = f32>>(device: &Cuda)
where
    Cuda: MoeDevice<T>,
{
    let mut rig = Rig::<T>::with_room(device, &large(), MANY, MANY);
    let first = rig.step();
    for nth in 1_usize..=1000 {
        rig.launch().expect("a step");
        assert!(
            !nth.is_multiple_of(100) || rig.outcome() == first,
            "step {nth} has other bits than the first"
        );
    }
    let stream = rig.runner.session().stream().clone();
    let mut graph = stream.capture(|| rig.launch().map_err(unwrapped)).expect("a capture");
    for nth in 1_usize..=1000 {
        graph.replay().expect("a replay");
        assert!(
            !nth.is_multiple_of(100) || rig.outcome() == first,
            "replay {nth} has other bits than the first step"
        );
    }
}

#[test]
fn a_thousand_large_steps_have_equal_bits_eager_and_replayed() {
    let Some(device) = cuda("a_thousand_large_steps_have_equal_bits_eager_and_replayed") else { return };
    repeats_long::<bf16>(device);
    repeats_long::<f16>(device);
    repeats_long::<f32>(device);
}

fn unwrapped(error: Error<CudaError>) -> CudaError {
    match error {
        Error::Device(error) => error,
        other => panic!("wanted the device's error, got {other}"),
    }
}

fn replays_training<T: Scalar<Acc = f32>>(device: &Cuda, config: &MoeConfig, count: usize)
where
    Cuda: MoeDevice<T>,
{
    let new = || Rig::<T>::with_room(device, config, count, count);
    let (mut eager, mut rig) = (new(), new());
    rig.step();
    let stream = rig.runner.session().stream().clone();
    let mut graph = stream.capture(|| rig.launch().map_err(unwrapped)).expect("a capture");
    // Routing differs from step to step: the second time all tokens are equal and go to the same experts.
    let mut equal = matrix::<T>(5, count, config.width);
    let row = equal.row(0).to_owned();
    equal.rows_mut().into_iter().for_each(|mut other| other.assign(&row));
    for (seed, x) in
        [matrix(4, count, config.width), equal, matrix(6, count, config.width)].iter().enumerate()
    {
        let dy = matrix::<T>(20 + seed as u64, count, config.width);
        for rig in [&mut eager, &mut rig] {
            rig.write(x);
            rig.runner.write(dy.view(), &mut rig.dy).expect("dy");
        }
        graph.replay().expect("a replay");
        assert!(rig.outcome() == eager.step(), "replay {seed} has other bits than the eager step");
    }
}

#[test]
fn a_replayed_training_step_has_the_bits_of_the_eager_one() {
    let Some(device) = cuda("a_replayed_training_step_has_the_bits_of_the_eager_one") else { return };
    for (config, count) in [(plain(), TOKENS), (full(), TOKENS), (large(), MANY)] {
        replays_training::<f32>(device, &config, count);
        replays_training::<bf16>(device, &config, count);
        replays_training::<f16>(device, &config, count);
    }
}
