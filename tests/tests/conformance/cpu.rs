//! The fast host backend: every storage type, several thread counts, every instruction set that this machine has.

use half::{bf16, f16};
use moe_core::ops::PackWeights;
use moe_core::{MoeDevice, Op, Scalar};
use moe_cpu::{Cpu, Isa};
use moe_tests::conformance;

fn conforms<T: Scalar>(device: &Cpu)
where
    Cpu: MoeDevice<T>,
{
    let report = conformance::<T, _>(device);
    assert!(report.failures().is_empty() && report.passed() > 0, "{device:?}: {report}");
    assert!(report.skipped().iter().all(|skip| skip.op == PackWeights::<T>::ID), "{device:?}: {report}");
}

#[test]
fn the_cpu_conforms_in_f32_on_one_thread() {
    conforms::<f32>(&Cpu::with_threads(1).expect("threads start"));
}

#[test]
fn the_cpu_conforms_in_f32_on_three_threads() {
    conforms::<f32>(&Cpu::with_threads(3).expect("threads start"));
}

#[test]
fn the_cpu_conforms_in_bf16() {
    conforms::<bf16>(&Cpu::with_threads(2).expect("threads start"));
}

#[test]
fn the_cpu_conforms_in_f16() {
    conforms::<f16>(&Cpu::with_threads(2).expect("threads start"));
}

#[test]
fn the_cpu_conforms_with_every_instruction_set() {
    for isa in Isa::available().filter(|isa| *isa != Isa::best()) {
        let device = Cpu::with_isa(2, isa).expect("it is available");
        conforms::<f32>(&device);
        conforms::<bf16>(&device);
    }
}
