//! All fixtures of the repository pass on every device that is there.

use crate::fixtures;
use moe_cuda::Cuda;
use moe_examples::device::{AnyDevice, DeviceName, DeviceTask};
use moe_examples::verify::{Line, Outcome, Summary, verify};
#[cfg(feature = "opencl")]
use moe_opencl::OpenCl;
use moe_tests::available;

/// Files in tests/fixtures.
const CASES: usize = 98;

struct Golden;

impl DeviceTask for Golden {
    type Output = (Summary, Vec<Line>);

    fn run<D: AnyDevice>(self, device: D) -> Self::Output {
        let mut failures = Vec::new();
        let note = |line: &Line| {
            if !matches!(line.outcome, Outcome::Passed(_)) {
                failures.push(line.clone());
            }
        };
        let summary = verify(&device, &fixtures(), note).expect("tests/fixtures can be read");
        (summary, failures)
    }
}

fn all_pass(device: DeviceName) {
    let (summary, failures) = device.open(Golden).expect("the device is there");
    let failures: Vec<String> = failures.iter().map(Line::to_string).collect();
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(summary, Summary { passed: CASES, failed: 0, skipped: 0 });
}

#[test]
fn every_fixture_passes_on_the_reference() {
    all_pass(DeviceName::Host);
}

#[test]
fn every_fixture_passes_on_the_processor() {
    all_pass(DeviceName::Cpu);
}

#[test]
fn every_fixture_passes_on_the_gpu() {
    let opened = Cuda::new();
    if available("every_fixture_passes_on_the_gpu", "cuda", &opened).is_some() {
        all_pass(DeviceName::Cuda(0));
    }
}

#[cfg(feature = "opencl")]
#[test]
fn every_fixture_passes_on_opencl() {
    let listed = OpenCl::list();
    for found in available("every_fixture_passes_on_opencl", "opencl", &listed).into_iter().flatten() {
        all_pass(DeviceName::OpenCl(Some((found.platform, found.device))));
    }
}
