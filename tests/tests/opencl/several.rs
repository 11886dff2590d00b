//! Several devices in one process, and numbers of devices that are not there.

use moe_core::ndarray::Array2;
use moe_core::{BackendError, Device, ErrorKind, MoeConfig, MoeLayer, Runner, Sizes, whole, whole_mut};
use moe_opencl::{Listed, OpenCl, OpenClError};
use moe_tests::{Random, available};

const TOKENS: usize = 33;
const WIDTH: usize = 24;

/// Twice what the loader finds: even one that is opened twice is two devices, with memory, streams and programs of their own.
fn twice(test: &str) -> Vec<OpenCl> {
    let listed = OpenCl::list();
    let found: Vec<&Listed> = available(test, "opencl", &listed).into_iter().flatten().collect();
    let open = |found: &Listed| OpenCl::open_listed(found.clone(), None).expect("a device");
    found.iter().chain(&found).map(|found| open(found)).collect()
}

/// y of a layer, after some steps.
fn forward(device: &OpenCl) -> Array2<f32> {
    let config =
        MoeConfig::new(Sizes { width: WIDTH, hidden: 40, experts: 8, top_k: 2 }).expect("a good layer");
    let layer = MoeLayer::<_, f32>::init(device, &config, 1).expect("a layer");
    let mut runner = Runner::new(device, &config, TOKENS).expect("a runner");
    let x =
        Array2::from_shape_vec((TOKENS, WIDTH), Random::new(1).values(TOKENS * WIDTH)).expect("the shape");
    let x = runner.upload(x.view()).expect("x");
    let mut y = runner.like(&x).expect("y");
    (0..10).for_each(|_| runner.forward(&layer, &x, &mut y).expect("forward"));
    runner.download(&y).expect("y")
}

#[test]
fn devices_work_side_by_side() {
    let devices = twice("devices_work_side_by_side");
    let alone: Vec<_> = devices.iter().map(forward).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = devices.iter().map(|device| scope.spawn(|| forward(device))).collect();
        running.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn memory_of_another_device_is_refused() {
    let devices = twice("memory_of_another_device_is_refused");
    for pair in devices.chunks_exact(2) {
        let streams = [0, 1].map(|at| pair[at].stream().expect("a stream"));
        let theirs = pair[1].alloc::<u32>(&streams[1], 10).expect("memory");
        let mut ours = pair[0].alloc::<u32>(&streams[0], 10).expect("memory");
        pair[1].sync(&streams[1]).expect("no fault");
        let copied =
            pair[0].copy(&streams[0], whole::<OpenCl, u32>(&theirs), whole_mut::<OpenCl, u32>(&mut ours));
        let error = copied.expect_err("it is of another device");
        assert!(matches!(error, OpenClError::OtherDevice { .. }), "{error}");
        let error = pair[0].alloc::<u32>(&streams[1], 10).expect_err("the stream is of another device");
        assert!(matches!(error, OpenClError::OtherDevice { .. }), "{error}");
    }
}

#[test]
fn a_number_that_no_device_has_says_how_many_there_are() {
    let listed = OpenCl::list();
    let test = "a_number_that_no_device_has_says_how_many_there_are";
    let Some(listed) = available(test, "opencl", &listed) else { return };
    let platforms = listed.iter().map(|found| found.platform + 1).max().unwrap_or(0);
    let devices = listed.iter().filter(|found| found.platform == 0).count();
    for (platform, device, text) in [
        (platforms, 0, format!("no OpenCL platform {platforms}: {platforms} found")),
        (0, devices, format!("no OpenCL device {devices}: {devices} found")),
    ] {
        let error = OpenCl::open(platform, device).expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(&text), "{error}");
    }
}
