//! Every op by its definition.

use crate::devices::devices;
use half::{bf16, f16};
use moe_core::ops::{
    AdamW, BiasUpdate, Combine, ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad, GateBwd, Gather, Merge,
    Route, RouteBwd, RouteStats, Sort, SumSquares,
};
use moe_opencl::Float;
use moe_tests::{Report, check_memory, check_op};

fn conforms<T: Float>(test: &str) {
    for device in devices(test) {
        let mut report = Report::new();
        check_memory::<T, _>(device, &mut report);
        check_op::<Combine<T>, T, _>(device, &mut report);
        check_op::<ExpertUp<T>, T, _>(device, &mut report);
        check_op::<ExpertDown<T>, T, _>(device, &mut report);
        check_op::<ExpertDownBwd<T>, T, _>(device, &mut report);
        check_op::<ExpertUpBwd<T>, T, _>(device, &mut report);
        check_op::<ExpertWgrad<T>, T, _>(device, &mut report);
        check_op::<Gather<T>, T, _>(device, &mut report);
        check_op::<Sort<T>, T, _>(device, &mut report);
        check_op::<Merge, T, _>(device, &mut report);
        check_op::<Route<T>, T, _>(device, &mut report);
        check_op::<RouteStats<T>, T, _>(device, &mut report);
        check_op::<RouteBwd<T>, T, _>(device, &mut report);
        check_op::<GateBwd<T>, T, _>(device, &mut report);
        check_op::<AdamW<T>, T, _>(device, &mut report);
        check_op::<SumSquares<T>, T, _>(device, &mut report);
        check_op::<BiasUpdate<T>, T, _>(device, &mut report);
        assert!(report.failures().is_empty() && report.passed() > 0, "{device:?}: {report}");
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
