//! NVIDIA GPUs, where there is one.

use half::{bf16, f16};
use moe_core::ops::PackWeights;
use moe_core::{MoeDevice, Op, Scalar};
use moe_cuda::Cuda;
use moe_tests::{available, conformance};

fn conforms<T: Scalar>(test: &str)
where
    Cuda: MoeDevice<T>,
{
    let opened = Cuda::new();
    let Some(device) = available(test, "cuda", &opened) else { return };
    let report = conformance::<T, _>(device);
    report.assert_passed();
    assert!(report.skipped().iter().all(|skip| skip.op == PackWeights::<T>::ID), "{device:?}: {report}");
}

#[test]
fn the_gpu_conforms_in_f32() {
    conforms::<f32>("the_gpu_conforms_in_f32");
}

#[test]
fn the_gpu_conforms_in_bf16() {
    conforms::<bf16>("the_gpu_conforms_in_bf16");
}

#[test]
fn the_gpu_conforms_in_f16() {
    conforms::<f16>("the_gpu_conforms_in_f16");
}
