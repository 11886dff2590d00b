//! Memory that runs out is an error of its own kind, and spoils nothing; and how much of it a training step takes.

use crate::rig::{Rig, cuda, full};
use half::bf16;
use moe_core::ops::{SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{
    BackendError, Device, Elem, Error, ErrorKind, MoeConfig, MoeLayer, Runner, Sizes, StateTensor, run,
    whole, whole_mut,
};
use moe_cuda::Cuda;
use moe_tests::Random;

#[test]
fn too_large_a_buffer_is_out_of_memory() {
    let Some(device) = cuda("too_large_a_buffer_is_out_of_memory") else { return };
    let stream = device.stream().expect("a stream");
    for len in [1 << 44, usize::MAX / 4, usize::MAX] {
        let error = device.alloc::<f32>(&stream, len).expect_err("no GPU has as much");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{len}: {error}");
    }
    device.alloc::<f32>(&stream, 1000).expect("memory");
    device.sync(&stream).expect("no fault");
}

#[test]
fn a_layer_or_runner_that_does_not_fit_is_out_of_memory() {
    let Some(device) = cuda("a_layer_or_runner_that_does_not_fit_is_out_of_memory") else { return };
    let mut rig = Rig::<f32>::new(device, &full());
    let want = rig.step();
    // 2^39 elements in w13: a layer that could be, on no GPU.
    let huge = Sizes { width: 1 << 17, hidden: 1 << 16, experts: 32, top_k: 2 };
    let huge = MoeConfig::new(huge).expect("a good layer");
    match MoeLayer::<_, f32>::init(device, &huge, 0).map(drop) {
        Err(Error::Device(error)) => assert_eq!(error.kind(), ErrorKind::OutOfMemory),
        other => panic!("wanted the device's error, got {other:?}"),
    }
    match Runner::<_, f32>::new(device, &huge, 1 << 28).map(drop) {
        Err(Error::Device(error)) => assert_eq!(error.kind(), ErrorKind::OutOfMemory),
        other => panic!("wanted the device's error, got {other:?}"),
    }
    rig.still_gives(&want);
}

#[test]
fn scratch_memory_begins_at_a_multiple_of_16_bytes() {
    let Some(device) = cuda("scratch_memory_begins_at_a_multiple_of_16_bytes") else { return };
    let stream = device.stream().expect("a stream");
    let values = device.alloc::<f32>(&stream, 1000).expect("memory");
    let mut sum = device.alloc::<f32>(&stream, 1).expect("memory");
    let mut scratch = device.alloc::<u8>(&stream, 1024).expect("memory");
    let dims = SumSquaresDims { len: 1000, accumulate: false };
    for (start, fits) in [(8, false), (16, true)] {
        let args =
            SumSquaresArgs { values: whole::<Cuda, f32>(&values), sum: whole_mut::<Cuda, f32>(&mut sum) };
        let scratch = whole_mut::<Cuda, u8>(&mut scratch).slice(start..1024).expect("a part");
        let ran = run::<SumSquares<f32>, Cuda>(device, &stream, &dims, args, scratch);
        match ran {
            Err(Error::Device(error)) if !fits => assert_eq!(error.kind(), ErrorKind::Shape),
            ran => assert!(ran.is_ok() && fits, "{start}: {ran:?}"),
        }
    }
    device.sync(&stream).expect("no fault");
}

/// Layers of published models with the tokens of a training step; the last is one of eight ranks of DeepSeek-V3.
const MODELS: [(&str, usize, Sizes); 4] = [
    ("qwen3-30b-a3b", 16384, Sizes { width: 2048, hidden: 768, experts: 128, top_k: 8 }),
    ("mixtral-8x7b", 8192, Sizes { width: 4096, hidden: 14336, experts: 8, top_k: 2 }),
    ("olmoe-1b-7b", 32768, Sizes { width: 2048, hidden: 1024, experts: 64, top_k: 8 }),
    ("dsv3-ep8", 8192, Sizes { width: 7168, hidden: 2048, experts: 32, top_k: 8 }),
];

/// A layer with a random gate, so that routing is as it may be; the experts' weights are zeros, which take as much room.
fn layer(device: &Cuda, config: &MoeConfig) -> MoeLayer<Cuda, bf16> {
    let state = config.tensors().into_iter().flatten().map(|spec| {
        let gate = spec.name == "gate";
        let values =
            if gate { Random::new(4).scaled(spec.len(), 0.02) } else { vec![bf16::ZERO; spec.len()] };
        let bytes = bytemuck::cast_slice(&values).to_vec();
        StateTensor { name: spec.name.to_owned(), shape: spec.shape().to_vec(), dtype: bf16::DTYPE, bytes }
    });
    MoeLayer::from_state(device, config, state).expect("a layer")
}

/// Beyond parameters, gradients, y and the rows' gradients, which are the caller's.
#[test]
fn a_training_step_takes_what_backward_reads_and_a_twentieth_more() {
    if cuda("a_training_step_takes_what_backward_reads_and_a_twentieth_more").is_none() {
        return;
    }
    for (name, tokens, sizes) in MODELS {
        // A device of its own, whose buffers are these alone.
        let device = &Cuda::new().expect("it was opened before");
        let Sizes { width, hidden, experts, top_k } = sizes;
        let config = MoeConfig::new(sizes).expect("a good layer");
        let layer = layer(device, &config);
        let mut grads = layer.grads().expect("gradients");
        let stream = device.stream().expect("a stream");
        device.sync(&stream).expect("no fault");
        let given = device.memory().expect("an answer").now;

        let mut runner = Runner::new(device, &config, tokens).expect("a runner");
        let mut saved = runner.saved(&config).expect("room");
        let x = runner.upload(crate::rig::matrix(1, tokens, width).view()).expect("x");
        let before = device.memory().expect("an answer").now;
        let rows_of_caller = (tokens * width * size_of::<bf16>()) as u64;
        let (mut y, mut dx) = (runner.like(&x).expect("y"), runner.like(&x).expect("dx"));
        for _ in 0..2 {
            runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward");
            runner.backward(&layer, &x, &mut saved, &x, &mut dx, &mut grads).expect("backward");
        }
        runner.session().sync().expect("no fault");
        let memory = device.memory().expect("an answer");

        let slots = (tokens * top_k) as u64;
        let kept = rows_of_caller // x
            + slots * (3 * hidden + width) as u64 * 2 // h, a and y of the experts
            + (tokens * experts * 4) as u64 // logits
            + slots * 4 * 4; // ids, weights, the rows of slots, the slots of rows
        let taken = memory.most - given - 2 * rows_of_caller;
        let more = taken as f64 / kept as f64 - 1.0;
        println!("{name}: {} MiB, {} of them needed: {:.2} % more", taken >> 20, kept >> 20, more * 100.0);
        assert!(more <= 0.05, "{name}: {taken} bytes, {kept} of them needed: {:.2} % more", more * 100.0);
        assert!(more >= 0.0, "{name}: {taken} bytes are fewer than the {kept} that there must be");
        assert!(memory.most == before + 2 * rows_of_caller, "{name}: steps allocate");
    }
}
