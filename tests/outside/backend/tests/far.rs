//! What a backend must show: conformance, the reference's bits in a whole layer, and the errors of a queue.

use far::{Far, FarError};
use half::bf16;
use moe_core::ndarray::Array2;
use moe_core::ops::{Gather, GatherArgs, GatherDims};
use moe_core::{
    AdamW, BackendError, Device, Error, ErrorKind, Host, MoeConfig, MoeDevice, MoeLayer, Runner, Session,
    Sizes, whole, whole_mut,
};
use moe_tests::conformance;

#[test]
fn the_device_conforms() {
    conformance::<f32, _>(&Far).assert_passed();
    conformance::<bf16, _>(&Far).assert_passed();
}

/// Two training steps; the output after them.
fn trained<D: MoeDevice<f32>>(device: &D) -> Result<Array2<f32>, Error<D::Error>> {
    let config = MoeConfig::new(Sizes { width: 16, hidden: 24, experts: 8, top_k: 2 })?;
    let mut layer = MoeLayer::<_, f32>::init(device, &config, 3)?;
    let mut runner = Runner::new(device, &config, 40)?;
    let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
    let mut adam = AdamW::new(&layer)?;
    let x = runner
        .upload(Array2::from_shape_fn((40, 16), |(t, d)| ((t * 7 + d * 3) % 11) as f32 - 5.0).view())?;
    let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
    for _ in 0..2 {
        runner.forward_train(&layer, &x, &mut saved, &mut y)?;
        let dy = runner.upload(runner.download(&y)?.view())?;
        runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads)?;
        adam.step(&mut runner, &mut layer, &mut grads, 1e-2)?;
    }
    runner.forward(&layer, &x, &mut y)?;
    runner.download(&y)
}

#[test]
fn a_layer_trains_to_the_bits_of_the_reference() {
    assert_eq!(trained(&Far).unwrap(), trained(&Host).unwrap());
}

#[test]
fn a_buffer_in_use_on_one_stream_is_no_others_until_it_is_handed_over() {
    let (first, second) = (Far.stream().unwrap(), Far.stream().unwrap());
    let mut buffer = Far.alloc::<u32>(&first, 2).unwrap();
    Far.upload(&first, &[5, 6], whole_mut::<Far, u32>(&mut buffer)).unwrap();
    let mut values = [0; 2];
    let error = Far.download(&second, whole::<Far, u32>(&buffer), &mut values).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stream);
    Far.hand_over::<u32>(&mut buffer, &first, &second).unwrap();
    Far.download(&second, whole::<Far, u32>(&buffer), &mut values).unwrap();
    assert_eq!(values, [5, 6]);
}

#[test]
fn a_fault_surfaces_at_sync() {
    let mut session = Session::new(&Far, 0).unwrap();
    let source = session.alloc::<f32>(4).unwrap();
    let (mut index, mut offsets) = (session.alloc::<u32>(1).unwrap(), session.alloc::<u32>(2).unwrap());
    let mut out = session.alloc::<f32>(4).unwrap();
    // The only slot is 0; this one points outside.
    session.upload(&[9], whole_mut::<Far, u32>(&mut index)).unwrap();
    session.upload(&[0, 1], whole_mut::<Far, u32>(&mut offsets)).unwrap();
    let dims = GatherDims { sources: 1, fan: 1, rows: 1, width: 4, groups: 1, pitch: 0 };
    let args = GatherArgs {
        source: whole::<Far, f32>(&source),
        index: whole::<Far, u32>(&index),
        offsets: whole::<Far, u32>(&offsets),
        out: whole_mut::<Far, f32>(&mut out),
    };
    session.run::<Gather<f32>>(&dims, args).unwrap();
    let Err(Error::Device(error)) = session.sync() else { panic!("the fault is lost") };
    assert!(matches!(error, FarError::Fault(_)), "{error}");
}
