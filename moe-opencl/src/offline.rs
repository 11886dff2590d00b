//! Offline: what the compiler would be given for a device that is not here, for checks with an offline compiler.

use crate::ops::SOURCES;
use crate::platform::{DeviceKind, Facts};
use crate::program::{FLOATS, NO_STORAGE};
use crate::way::Ways;

/// A program, as the crate would have it compiled.
#[derive(Clone, Debug)]
pub struct ProgramText {
    /// op, storage type and way
    pub name: String,
    /// OpenCL C
    pub text: String,
    /// the compiler's options
    pub options: String,
}

/// Every program of an Intel GPU whose narrowest subgroups have `lanes` work items, with or without matrix units.
pub fn intel_gpu(lanes: usize, matrix_units: bool) -> Vec<ProgramText> {
    let mut extensions =
        "cl_intel_subgroups cl_intel_subgroups_short cl_intel_required_subgroup_size".to_owned();
    if matrix_units {
        extensions += " cl_intel_subgroup_matrix_multiply_accumulate";
    }
    programs(&Facts {
        name: "an Intel GPU".into(),
        vendor: "Intel".into(),
        version: "OpenCL 3.0".into(),
        driver: String::new(),
        extensions,
        kind: DeviceKind::Gpu,
        units: 96,
        group: 512,
        local: 64 << 10,
        largest: 4 << 30,
        lanes: 1,
        subgroups: [8, 16, 32].into_iter().filter(|size| *size >= lanes).collect(),
        subnormals: true,
    })
}

fn programs(facts: &Facts) -> Vec<ProgramText> {
    let ways = Ways::new(facts, None);
    let of_type = |ways, storage| SOURCES.iter().flat_map(move |source| source.variants(storage, ways));
    let types = || FLOATS.iter().chain(NO_STORAGE);
    let variants = ways.iter().flat_map(|ways| types().flat_map(move |storage| of_type(ways, *storage)));
    variants
        .map(|variant| ProgramText {
            name: variant.to_string(),
            text: variant.text(),
            options: variant.options(facts),
        })
        .collect()
}
