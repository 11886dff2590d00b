//! Captured steps: the bits of eager ones, whatever the tokens, and errors that leave everything usable.

use crate::rig::{Rig, TOKENS, cuda, full, plain, tokens};
use half::bf16;
use moe_core::{BackendError, Device, Error, ErrorKind, MoeConfig, MoeDevice, Scalar, whole_mut};
use moe_cuda::{Cuda, CudaError, Graph};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

type Failed = Box<dyn std::error::Error>;

fn captured<T: Scalar<Acc = f32>>(rig: &mut Rig<T>) -> Graph
where
    Cuda: MoeDevice<T>,
{
    rig.forward().expect("a step before the capture");
    let stream = rig.runner.session().stream().clone();
    stream.capture(|| Ok::<(), Failed>(rig.forward()?)).expect("a capture")
}

fn replays<T: Scalar<Acc = f32>>(device: &Cuda, config: &MoeConfig)
where
    Cuda: MoeDevice<T>,
{
    let (mut eager, mut rig) = (Rig::<T>::new(device, config), Rig::<T>::new(device, config));
    let mut graph = captured(&mut rig);
    // Routing differs from call to call: the second time all tokens are equal and go to the same experts.
    let mut equal = tokens::<T>(5, TOKENS);
    let row = equal.row(0).to_owned();
    equal.rows_mut().into_iter().for_each(|mut other| other.assign(&row));
    for x in [tokens(4, TOKENS), equal, tokens(6, TOKENS)] {
        eager.write(&x);
        eager.forward().expect("an eager step");
        rig.write(&x);
        graph.replay().expect("a replay");
        assert!(rig.read(rig.y.view()) == eager.read(eager.y.view()), "a replay has other bits");
    }
}

#[test]
fn a_replay_has_the_bits_of_the_eager_step() {
    let Some(device) = cuda("a_replay_has_the_bits_of_the_eager_step") else { return };
    for config in [plain(), full()] {
        replays::<f32>(device, &config);
        replays::<bf16>(device, &config);
    }
}

#[test]
fn a_graph_keeps_its_buffers_alive() {
    let Some(device) = cuda("a_graph_keeps_its_buffers_alive") else { return };
    let mut rig = Rig::<f32>::new(device, &plain());
    let mut graph = captured(&mut rig);
    let stream = rig.runner.session().stream().clone();
    drop(rig);
    graph.replay().expect("a replay");
    device.sync(&stream).expect("no fault");
}

/// What the capture returns when its step does `forbidden`, which must be an error of its own too.
fn refused(rig: &mut Rig<f32>, mut forbidden: impl FnMut(&mut Rig<f32>) -> Result<(), Error<CudaError>>) {
    let want = rig.step();
    let stream = rig.runner.session().stream().clone();
    let result = stream.capture(|| {
        rig.forward().map_err(unwrapped)?;
        forbidden(rig).map_err(unwrapped)
    });
    match result {
        Err(error @ CudaError::Capture(_)) => assert_eq!(error.kind(), ErrorKind::Unsupported),
        Err(error) => panic!("wanted an error about the capture, got {error}"),
        Ok(_) => panic!("wanted an error about the capture"),
    }
    rig.still_gives(&want);
}

fn unwrapped(error: Error<CudaError>) -> CudaError {
    match error {
        Error::Device(error) => error,
        other => panic!("wanted the device's error, got {other}"),
    }
}

#[test]
fn what_cannot_be_captured_is_an_error_and_spoils_nothing() {
    let Some(device) = cuda("what_cannot_be_captured_is_an_error_and_spoils_nothing") else { return };
    let mut rig = Rig::<f32>::new(device, &plain());
    let other = tokens::<f32>(8, TOKENS);
    let first = tokens::<f32>(1, TOKENS);
    refused(&mut rig, |rig| rig.runner.write(first.view(), &mut rig.x));
    refused(&mut rig, |rig| rig.runner.upload(other.view()).map(drop));
    refused(&mut rig, |rig| rig.runner.rows(3, 3).map(drop));
    refused(&mut rig, |rig| rig.runner.download(&rig.y).map(drop));
    refused(&mut rig, |rig| rig.runner.session().sync());
    let stream = rig.runner.session().stream().clone();
    refused(&mut rig, |_| stream.capture(|| Ok(())).map(drop));
    refused(&mut rig, |_| Ok(device.record(&stream).map(drop)?));
    let elsewhere = device.stream().expect("a stream");
    let event = device.record(&elsewhere).expect("an event");
    refused(&mut rig, |_| Ok(device.wait(&stream, &event)?));
}

#[test]
fn other_threads_cannot_slip_work_into_a_capture() {
    let Some(device) = cuda("other_threads_cannot_slip_work_into_a_capture") else { return };
    let mut rig = Rig::<f32>::new(device, &plain());
    let want = rig.step();
    let stream = rig.runner.session().stream().clone();
    let mut buffer = device.alloc::<u32>(&stream, 3).expect("memory");
    let graph = stream.capture(|| {
        let copied = thread::scope(|scope| {
            let upload = || device.upload(&stream, &[1, 2, 3], whole_mut::<Cuda, u32>(&mut buffer));
            scope.spawn(upload).join().expect("no panic")
        });
        assert_eq!(copied.expect_err("the stream is being captured").kind(), ErrorKind::Unsupported);
        rig.forward()
    });
    graph.expect("a capture").replay().expect("a replay");
    device.upload(&stream, &[1, 2, 3], whole_mut::<Cuda, u32>(&mut buffer)).expect("it is over");
    rig.still_gives(&want);
}

#[test]
fn a_buffer_dropped_in_a_capture_is_freed_after_it() {
    let Some(device) = cuda("a_buffer_dropped_in_a_capture_is_freed_after_it") else { return };
    let mut rig = Rig::<f32>::new(device, &plain());
    let want = rig.step();
    let stream = rig.runner.session().stream().clone();
    let mut extra = Some(device.alloc::<f32>(&stream, 1000).expect("memory"));
    device
        .upload(&stream, &[1.0; 1000], whole_mut::<Cuda, f32>(extra.as_mut().expect("it is there")))
        .expect("a copy");
    let graph = stream.capture(|| {
        drop(extra.take());
        rig.forward().map_err(unwrapped)
    });
    drop(graph.expect("a capture"));
    rig.still_gives(&want);
}

#[test]
fn a_step_that_panics_ends_its_capture() {
    let Some(device) = cuda("a_step_that_panics_ends_its_capture") else { return };
    let mut rig = Rig::<f32>::new(device, &plain());
    let want = rig.step();
    let stream = rig.runner.session().stream().clone();
    let step = || -> Result<(), Failed> {
        rig.forward()?;
        resume_unwind(Box::new("the step's own"))
    };
    assert!(catch_unwind(AssertUnwindSafe(|| stream.capture(step))).is_err(), "the panic is the caller's");
    rig.still_gives(&want);
    captured(&mut rig).replay().expect("a replay");
}
