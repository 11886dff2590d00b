//! Every op by its definition.

use crate::devices::devices;
use half::{bf16, f16};
use moe_core::ops::PackWeights;
use moe_core::{MoeDevice, Op};
use moe_opencl::{Float, OpenCl};
use moe_tests::conformance;

fn conforms<T: Float>(test: &str)
where
    OpenCl: MoeDevice<T>,
{
    for device in devices(test) {
        let report = conformance::<T, _>(device);
        report.assert_passed();
        assert!(report.skipped().iter().all(|skip| skip.op == PackWeights::<T>::ID), "{device:?}: {report}");
    }
}

#[test]
fn opencl_conforms_in_f32() {
    conforms::<f32>("opencl_conforms_in_f32");
}

#[test]
fn opencl_conforms_in_bf16() {
    conforms::<bf16>("opencl_conforms_in_bf16");
}

#[test]
fn opencl_conforms_in_f16() {
    conforms::<f16>("opencl_conforms_in_f16");
}
