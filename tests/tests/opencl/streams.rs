//! A buffer belongs to a stream until it is handed over; runners of several threads share a layer.

use crate::devices::devices;
use moe_core::ndarray::Array2;
use moe_core::{
    BackendError, Device, Error, ErrorKind, MoeConfig, MoeLayer, Runner, Sizes, whole, whole_mut,
};
use moe_opencl::OpenCl;
use moe_tests::Random;

const TOKENS: usize = 70;
const WIDTH: usize = 24;

fn config() -> MoeConfig {
    MoeConfig::new(Sizes { width: WIDTH, hidden: 40, experts: 8, top_k: 2 }).expect("a good layer")
}

fn tokens() -> Array2<f32> {
    Array2::from_shape_vec((TOKENS, WIDTH), Random::new(1).values(TOKENS * WIDTH)).expect("the shape")
}

#[test]
fn a_buffer_of_another_stream_is_refused_until_it_is_handed_over() {
    for device in devices("a_buffer_of_another_stream_is_refused_until_it_is_handed_over") {
        let [ours, theirs] = [(), ()].map(|()| device.stream().expect("a stream"));
        let values: Vec<u32> = (0..5000).collect();
        let mut source = device.alloc::<u32>(&ours, values.len()).expect("memory");
        let mut buffer = device.alloc::<u32>(&ours, values.len()).expect("memory");
        device.upload(&ours, &values, whole_mut::<OpenCl, u32>(&mut source)).expect("a copy");
        let across = |stream, from: &_, to: &mut _| {
            device.copy(stream, whole::<OpenCl, u32>(from), whole_mut::<OpenCl, u32>(to))
        };
        across(&ours, &source, &mut buffer).expect("all of it is ours");
        let mut copy = device.alloc::<u32>(&theirs, values.len()).expect("memory");
        let error = across(&theirs, &buffer, &mut copy).expect_err("it belongs to another stream");
        assert_eq!(error.kind(), ErrorKind::Stream);
        device.hand_over(&mut buffer, &ours, &theirs).expect("a hand-over");
        across(&theirs, &buffer, &mut copy).expect("it is theirs now");
        let mut got = vec![0; values.len()];
        device.download(&theirs, whole::<OpenCl, u32>(&copy), &mut got).expect("a copy");
        assert_eq!(got, values);
    }
}

#[test]
fn the_host_may_wait_in_place_of_an_event() {
    for device in devices("the_host_may_wait_in_place_of_an_event") {
        let [ours, theirs] = [(), ()].map(|()| device.stream().expect("a stream"));
        let buffer = device.alloc::<u32>(&ours, 100).expect("memory");
        let mut got = vec![1; 100];
        let error = device.download(&theirs, whole::<OpenCl, u32>(&buffer), &mut got);
        assert_eq!(error.expect_err("nobody has waited").kind(), ErrorKind::Stream);
        device.sync(&ours).expect("no fault");
        device.download(&theirs, whole::<OpenCl, u32>(&buffer), &mut got).expect("ours is done");
        assert_eq!(got, [0; 100]);
    }
}

#[test]
fn tokens_of_another_runner_are_refused_before_it_has_ended() {
    for device in devices("tokens_of_another_runner_are_refused_before_it_has_ended") {
        let layer = MoeLayer::<_, f32>::init(device, &config(), 1).expect("a layer");
        let [mut runner, other] =
            [(), ()].map(|()| Runner::new(device, &config(), TOKENS).expect("a runner"));
        let theirs = other.rows(TOKENS, WIDTH).expect("tokens");
        let mut y = runner.rows(TOKENS, WIDTH).expect("room");
        match runner.forward(&layer, &theirs, &mut y) {
            Err(Error::Device(error)) => assert_eq!(error.kind(), ErrorKind::Stream),
            other => panic!("wanted the device's error, got {other:?}"),
        }
        let ours = runner.upload(tokens().view()).expect("tokens");
        runner.forward(&layer, &ours, &mut y).expect("the error spoilt nothing");
    }
}

#[test]
fn a_layer_is_shared_by_the_runners_of_two_threads() {
    for device in devices("a_layer_is_shared_by_the_runners_of_two_threads") {
        let layer = MoeLayer::<_, f32>::init(device, &config(), 1).expect("a layer");
        let run = || {
            let mut runner = Runner::new(device, &config(), TOKENS).expect("a runner");
            let x = runner.upload(tokens().view()).expect("x");
            let mut y = runner.like(&x).expect("y");
            for _ in 0..20 {
                runner.forward(&layer, &x, &mut y).expect("forward");
            }
            runner.download(&y).expect("y")
        };
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(run);
            (run(), other.join().expect("no panic"))
        });
        assert_eq!(first, second);
    }
}
