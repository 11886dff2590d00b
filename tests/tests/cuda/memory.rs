//! Memory that runs out is an error of its own kind, and spoils nothing.

use crate::rig::{Rig, cuda, full};
use moe_core::ops::{SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{
    BackendError, Device, Error, ErrorKind, MoeConfig, MoeLayer, Runner, Sizes, run, whole, whole_mut,
};
use moe_cuda::Cuda;

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
