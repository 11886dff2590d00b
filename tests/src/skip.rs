//! Skip: what a test could not run here, said where `./test` counts it.

use moe_core::{BackendError, ErrorKind};
use std::fs::OpenOptions;
use std::io::Write;

/// The device, or `None` if this machine has none: then a line with the test's name and the reason is appended to the file
/// `$MOE_SKIPPED`. If `$MOE_REQUIRE_<DEVICE>` is set (`MOE_REQUIRE_CUDA`), a device that is missing fails the test.
///
/// # Panics
/// If the device is there and cannot be opened, or is required.
pub fn available<'a, D, E: BackendError>(
    test: &str,
    device: &str,
    opened: &'a Result<D, E>,
) -> Option<&'a D> {
    let required = std::env::var_os(format!("MOE_REQUIRE_{}", device.to_uppercase())).is_some();
    match opened {
        Ok(found) => Some(found),
        Err(error) if error.kind() == ErrorKind::Unavailable && !required => {
            skipped(&format!("{test}, {device}"), &error.to_string());
            None
        }
        Err(error) => panic!("{device}: {error}"),
    }
}

/// Says that `test` could not run here, and why, in a line of the file `$MOE_SKIPPED`.
///
/// # Panics
/// If the file cannot be written.
pub fn skipped(test: &str, why: &str) {
    let line = format!("{test}: {why}");
    eprintln!("skipped: {line}");
    let Some(path) = std::env::var_os("MOE_SKIPPED") else { return };
    // One write, so that lines of tests that run side by side stay whole.
    let written = OpenOptions::new().append(true).create(true).open(&path);
    let written = written.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        panic!("{}: {error}", path.display());
    }
}
