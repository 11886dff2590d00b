//! Programs on disk: the second start finds what the first has built, and a start without a place to keep them builds them.

use moe_core::ops::Combine;
use moe_opencl::{Listed, OpenCl};
use moe_tests::{Case, Random, Setup, available, launch};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A launch on a device that keeps its programs in `folder`.
fn start(found: &Listed, folder: &Path) {
    let device = OpenCl::open_listed(found.clone(), Some(folder.to_owned())).expect("a device");
    let sample = &Combine::<f32>::samples(&mut Random::new(1))[0];
    let outputs = launch::<_, f32, _>(&device, sample, Setup::default());
    outputs.expect("the device computes, whatever becomes of its programs");
}

/// Names and times of writing.
fn files(folder: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| (entry.path(), entry.metadata().and_then(|data| data.modified()).expect("a time")))
        .collect()
}

fn fresh(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("moe-tests-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}

#[test]
fn the_second_start_builds_nothing() {
    let listed = OpenCl::list();
    for found in available("the_second_start_builds_nothing", "opencl", &listed).into_iter().flatten() {
        let folder = fresh("programs");
        start(found, &folder);
        let kept = files(&folder);
        assert!(!kept.is_empty(), "{found}: nothing was kept");
        // A program that is built is written.
        start(found, &folder);
        assert_eq!(files(&folder), kept, "{found}");
        fs::remove_dir_all(folder).expect("it was made");
    }
}

#[test]
fn a_device_works_without_a_place_for_its_programs() {
    let listed = OpenCl::list();
    let test = "a_device_works_without_a_place_for_its_programs";
    for found in available(test, "opencl", &listed).into_iter().flatten() {
        let file = fresh("no-folder");
        fs::write(&file, b"no folder").expect("a temporary file");
        start(found, &file.join("below"));
        fs::remove_file(file).expect("it was made");
    }
}
