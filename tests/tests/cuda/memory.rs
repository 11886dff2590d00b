//! Memory that runs out is an error of its own kind, and spoils nothing.

use crate::rig::{Rig, cuda, full, plain};
use moe_core::{BackendError, Device, Error, ErrorKind, MoeConfig, MoeLayer, Runner, Sizes};

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
    let huge = Sizes { width: 1 << 17, hidden: 1 << 17, experts: 256, top_k: 2 };
    let huge = MoeConfig::new(huge).expect("a good layer");
    match MoeLayer::<_, f32>::init(device, &huge, 0).map(drop) {
        Err(Error::Device(error)) => assert_eq!(error.kind(), ErrorKind::OutOfMemory),
        other => panic!("wanted the device's error, got {other:?}"),
    }
    match Runner::<_, f32>::new(device, &plain(), 1 << 29).map(drop) {
        Err(Error::Device(error)) => assert_eq!(error.kind(), ErrorKind::OutOfMemory),
        other => panic!("wanted the device's error, got {other:?}"),
    }
    rig.still_gives(&want);
}
