//! The reference device against itself: the suite's own arguments are good, and nothing in it is out of reach.

use half::{bf16, f16};
use moe_core::Host;
use moe_core::ops::{PackWeights, Route};
use moe_core::{Op, Scalar};
use moe_tests::conformance;

fn conforms<T: Scalar>() {
    let report = conformance::<T, _>(&Host);
    report.assert_passed();
    assert!(report.passed_by(Route::<T>::ID) > 100, "{report}");
    assert!(report.skipped().iter().all(|skip| skip.op == PackWeights::<T>::ID), "{report}");
}

#[test]
fn the_host_conforms_in_f32() {
    conforms::<f32>();
}

#[test]
fn the_host_conforms_in_bf16() {
    conforms::<bf16>();
}

#[test]
fn the_host_conforms_in_f16() {
    conforms::<f16>();
}

#[test]
fn the_host_conforms_in_f64() {
    conforms::<f64>();
}
