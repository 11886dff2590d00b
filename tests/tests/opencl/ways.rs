//! The experts' products in each of the ways that a device can compute them.

use half::{bf16, f16};
use moe_core::ops::{ExpertDown, ExpertDownBwd, ExpertUp, ExpertUpBwd, ExpertWgrad};
use moe_opencl::{Float, OpenCl, Way};
use moe_tests::{Case, Random, Report, Setup, available, check_op, launch, skipped};

const VECTORS: &[Way] = &[
    Way::Vector { lanes: 4, columns: 32 },
    Way::Vector { lanes: 8, columns: 128 },
    Way::Vector { lanes: 16, columns: 64 },
];
const LOCAL: &[Way] = &[Way::Local { tile: 64 }, Way::Local { tile: 128 }];
const SUBGROUPS: &[Way] = &[Way::Subgroup { lanes: 8 }, Way::Subgroup { lanes: 16 }];
const MATRIX: &[Way] = &[Way::Matrix { lanes: 8, emulated: true }, Way::Matrix { lanes: 16, emulated: true }];

/// Asks all products of `T` of every device that can compute them this way; what none can is noted as skipped.
fn conforms<T: Float>(test: &str, way: Way) {
    let listed = OpenCl::list();
    let Some(listed) = available(test, "opencl", &listed) else { return };
    let fit = listed.iter().filter(|found| way.fits(&found.facts));
    if fit.clone().next().is_none() {
        skipped(test, &format!("no OpenCL device here computes {way:?}"));
    }
    for found in fit {
        let device = OpenCl::open_way(found.clone(), way).expect("the device fits");
        let mut report = Report::new();
        check_op::<ExpertUp<T>, T, _>(&device, &mut report);
        check_op::<ExpertDown<T>, T, _>(&device, &mut report);
        check_op::<ExpertDownBwd<T>, T, _>(&device, &mut report);
        check_op::<ExpertUpBwd<T>, T, _>(&device, &mut report);
        check_op::<ExpertWgrad<T>, T, _>(&device, &mut report);
        assert!(report.failures().is_empty() && report.passed() > 0, "{device:?}, {way:?}: {report}");
        let sample = &ExpertDown::<T>::samples(&mut Random::new(7))[0];
        let outputs = launch::<_, T, _>(&device, sample, Setup::default()).expect("the sample was right");
        assert_eq!(outputs.path, way.path(), "{device:?}");
    }
}

macro_rules! tests {
    ($($test:ident: $float:ty, $ways:expr;)*) => {
        $(
            #[test]
            fn $test() {
                $ways.iter().for_each(|way| conforms::<$float>(stringify!($test), *way));
            }
        )*
    };
}
tests! {
    vectors_conform_in_f32: f32, VECTORS;
    vectors_conform_in_bf16: bf16, VECTORS;
    vectors_conform_in_f16: f16, VECTORS;
    products_through_local_memory_conform_in_f32: f32, LOCAL;
    products_through_local_memory_conform_in_bf16: bf16, LOCAL;
    products_through_local_memory_conform_in_f16: f16, LOCAL;
    subgroups_conform_in_f32: f32, SUBGROUPS;
    subgroups_conform_in_bf16: bf16, SUBGROUPS;
    subgroups_conform_in_f16: f16, SUBGROUPS;
    the_matrix_unit_emulated_conforms_in_bf16: bf16, MATRIX;
    the_matrix_unit_emulated_conforms_in_f16: f16, MATRIX;
}
