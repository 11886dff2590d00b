//! A buffer belongs to a stream until it is handed over.

use crate::rig::{Rig, cuda, plain};
use moe_core::ops::{Merge, MergeArgs, MergeDims};
use moe_core::{BackendError, Device, Error, ErrorKind, Kernel, whole, whole_mut};
use moe_cuda::Cuda;

#[test]
fn a_buffer_of_another_stream_is_refused_until_it_is_handed_over() {
    let Some(device) = cuda("a_buffer_of_another_stream_is_refused_until_it_is_handed_over") else { return };
    let (ours, theirs) = (device.stream().expect("a stream"), device.stream().expect("a stream"));
    let values: Vec<u32> = (0..5000).collect();
    let mut buffer = device.alloc::<u32>(&ours, values.len()).expect("memory");
    device.upload(&ours, &values, whole_mut::<Cuda, u32>(&mut buffer)).expect("a copy");
    let mut copy = device.alloc::<u32>(&theirs, values.len()).expect("memory");
    let across = |device: &Cuda, from: &_, to: &mut _| {
        device.copy(&theirs, whole::<Cuda, u32>(from), whole_mut::<Cuda, u32>(to))
    };
    let error = across(device, &buffer, &mut copy).expect_err("it belongs to another stream");
    assert_eq!(error.kind(), ErrorKind::Stream);
    device.hand_over(&mut buffer, &ours, &theirs).expect("a hand-over");
    across(device, &buffer, &mut copy).expect("it is theirs now");
    let mut got = vec![0; values.len()];
    device.download(&theirs, whole::<Cuda, u32>(&copy), &mut got).expect("a copy");
    assert_eq!(got, values);
}

#[test]
fn a_launch_with_sizes_that_lie_is_refused() {
    let Some(device) = cuda("a_launch_with_sizes_that_lie_is_refused") else { return };
    let stream = device.stream().expect("a stream");
    let [mut counts, mut rows] = [2, 4].map(|len| device.alloc::<u32>(&stream, len).expect("memory"));
    let mut overflow = device.alloc::<u32>(&stream, 1).expect("memory");
    let mut index = device.alloc::<u32>(&stream, 4).expect("memory");
    let mut scratch = device.alloc::<u8>(&stream, 1 << 16).expect("memory");
    device.upload(&stream, &[1, 1], whole_mut::<Cuda, u32>(&mut counts)).expect("a copy");
    let args = MergeArgs::<Cuda> {
        counts: whole::<Cuda, u32>(&counts),
        offsets: whole_mut::<Cuda, u32>(&mut rows),
        index: whole_mut::<Cuda, u32>(&mut index),
        overflow: whole_mut::<Cuda, u32>(&mut overflow),
    };
    let dims = MergeDims { ranks: 1, experts: 2, pitch: 0, rows: 1 << 30 };
    let launched = Kernel::<Merge>::launch(device, &stream, &dims, args, whole_mut::<Cuda, u8>(&mut scratch));
    assert_eq!(launched.expect_err("the index is shorter").kind(), ErrorKind::Shape);
}

#[test]
fn tokens_of_another_runner_are_refused() {
    let Some(device) = cuda("tokens_of_another_runner_are_refused") else { return };
    let (mut rig, other) = (Rig::<f32>::new(device, &plain()), Rig::<f32>::new(device, &plain()));
    let want = rig.step();
    match rig.runner.forward(&rig.layer, &other.x, &mut rig.y) {
        Err(Error::Device(error)) => assert_eq!(error.kind(), ErrorKind::Stream),
        other => panic!("wanted the device's error, got {other:?}"),
    }
    rig.still_gives(&want);
}

#[test]
fn a_layer_is_shared_by_the_runners_of_two_threads() {
    let Some(device) = cuda("a_layer_is_shared_by_the_runners_of_two_threads") else { return };
    let rig = Rig::<f32>::new(device, &plain());
    let layer = &rig.layer;
    let run = || {
        let mut runner = moe_core::Runner::new(device, &plain(), crate::rig::TOKENS).expect("a runner");
        let x = runner.upload(crate::rig::tokens(1, crate::rig::TOKENS).view()).expect("x");
        let mut y = runner.like(&x).expect("y");
        for _ in 0..20 {
            runner.forward(layer, &x, &mut y).expect("forward");
        }
        runner.download(&y).expect("y")
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(run);
        (run(), other.join().expect("no panic"))
    });
    assert_eq!(first, second);
}
