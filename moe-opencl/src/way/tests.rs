//! Which way a device gets for what it reports.

use super::*;

const SUBGROUPS: &str = "cl_intel_subgroups cl_intel_subgroups_short cl_intel_required_subgroup_size";
const MATRIX_UNIT: &str = " cl_intel_subgroup_matrix_multiply_accumulate";

/// A graphics processor that reports nothing special.
fn gpu() -> Facts {
    Facts {
        name: "a GPU".into(),
        vendor: "somebody".into(),
        version: "OpenCL 1.2".into(),
        driver: "1".into(),
        extensions: "cl_khr_fp64".into(),
        kind: DeviceKind::Gpu,
        units: 16,
        group: 256,
        local: 48 << 10,
        largest: 1 << 30,
        lanes: 1,
        subgroups: Vec::new(),
        subnormals: true,
    }
}

fn intel(subgroups: &[usize]) -> Facts {
    Facts { extensions: SUBGROUPS.into(), subgroups: subgroups.into(), group: 512, ..gpu() }
}

fn processor(lanes: usize, local: usize) -> Facts {
    Facts { kind: DeviceKind::Cpu, lanes, local, group: 4096, ..gpu() }
}

/// What products of f32 take.
fn of_f32(facts: &Facts) -> Option<Way> {
    Ways::new(facts, None).map(|ways| ways.choose(DType::F32, false))
}

#[test]
fn a_gpu_without_subgroups_multiplies_through_local_memory() {
    assert_eq!(of_f32(&gpu()), Some(Way::Local { tile: 128 }));
}

#[test]
fn little_local_memory_or_small_groups_make_small_tiles() {
    let small = Some(Way::Local { tile: 64 });
    assert_eq!(of_f32(&Facts { local: 32 << 10, ..gpu() }), small);
    assert_eq!(of_f32(&Facts { group: 128, ..gpu() }), small);
}

#[test]
fn a_device_too_small_for_every_way_has_none() {
    assert_eq!(of_f32(&Facts { local: 16 << 10, ..gpu() }), None);
    assert_eq!(of_f32(&Facts { group: 32, ..gpu() }), None);
}

#[test]
fn subgroups_are_the_narrowest_that_the_kernels_know() {
    assert_eq!(of_f32(&intel(&[8, 16, 32])), Some(Way::Subgroup { lanes: 8 }));
    assert_eq!(of_f32(&intel(&[16, 32])), Some(Way::Subgroup { lanes: 16 }));
    assert_eq!(of_f32(&intel(&[32])), Some(Way::Local { tile: 128 }));
}

#[test]
fn each_extension_is_needed_for_subgroups() {
    for missing in SUBGROUPS.split(' ') {
        let others = SUBGROUPS.split(' ').filter(|name| *name != missing).collect::<Vec<_>>().join(" ");
        assert_eq!(
            of_f32(&Facts { extensions: others, ..intel(&[8, 16]) }),
            Some(Way::Local { tile: 128 }),
            "without {missing}"
        );
    }
}

#[test]
fn groups_too_small_for_subgroups_take_local_memory() {
    assert_eq!(of_f32(&Facts { group: 64, ..intel(&[8, 16]) }), Some(Way::Local { tile: 64 }));
}

#[test]
fn the_matrix_unit_multiplies_short_types_and_subgroups_the_rest() {
    let facts = Facts { extensions: SUBGROUPS.to_owned() + MATRIX_UNIT, ..intel(&[16, 32]) };
    let ways = Ways::new(&facts, None).unwrap();
    let (unit, rest) = (Way::Matrix { lanes: 16, emulated: false }, Way::Subgroup { lanes: 16 });
    for storage in [DType::Bf16, DType::F16] {
        assert_eq!(ways.choose(storage, false), unit);
        assert_eq!(ways.choose(storage, true), rest, "factors are f32");
    }
    assert_eq!(ways.choose(DType::F32, false), rest);
}

#[test]
fn a_processor_has_vectors_as_wide_as_it_says_and_columns_as_its_local_memory_allows() {
    let vector = |lanes, columns| Some(Way::Vector { lanes, columns });
    assert_eq!(of_f32(&processor(8, 1 << 20)), vector(8, 128));
    assert_eq!(of_f32(&processor(16, 1 << 20)), vector(16, 128));
    assert_eq!(of_f32(&processor(64, 1 << 20)), vector(16, 128));
    assert_eq!(of_f32(&processor(1, 1 << 20)), vector(4, 128));
    for columns in [128, 64, 32] {
        let room = Way::Vector { lanes: 8, columns }.local();
        assert_eq!(of_f32(&processor(8, room)), vector(8, columns));
    }
    let room = Way::Vector { lanes: 8, columns: 32 }.local();
    assert_eq!(of_f32(&processor(8, room - 1)), Some(Way::Local { tile: 128 }));
}

#[test]
fn a_processor_with_subgroups_keeps_its_vectors() {
    let facts = Facts { kind: DeviceKind::Cpu, lanes: 8, local: 1 << 20, ..intel(&[8, 16]) };
    assert_eq!(of_f32(&facts), Some(Way::Vector { lanes: 8, columns: 128 }));
}

#[test]
fn a_way_that_is_asked_for_is_refused_where_it_does_not_fit() {
    let refused = |facts: &Facts, way| Ways::new(facts, Some(way)).is_none();
    assert!(refused(&gpu(), Way::Subgroup { lanes: 8 }));
    assert!(refused(&intel(&[16]), Way::Subgroup { lanes: 8 }));
    assert!(refused(&intel(&[8]), Way::Matrix { lanes: 8, emulated: false }));
    assert!(!refused(&intel(&[8]), Way::Matrix { lanes: 8, emulated: true }));
    assert!(refused(&gpu(), Way::Local { tile: 32 }));
    assert!(refused(&processor(8, 1 << 20), Way::Vector { lanes: 3, columns: 64 }));
}
