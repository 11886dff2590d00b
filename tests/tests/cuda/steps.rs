//! Steps repeat bit for bit, whatever was in the workspace before.

use crate::rig::{Rig, TOKENS, cuda, full, plain, tokens};
use half::{bf16, f16};
use moe_core::ndarray::Array2;
use moe_core::{Accum, AdamW, MoeConfig, MoeDevice, Scalar};
use moe_cuda::Cuda;

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
