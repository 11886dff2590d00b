//! The devices that the tests run on.

use moe_opencl::{OpenCl, OpenClError};
use moe_tests::available;
use std::sync::OnceLock;

/// Every device that the loader finds, opened once; none after a note that `test` is skipped.
pub(crate) fn devices(test: &str) -> &'static [OpenCl] {
    static DEVICES: OnceLock<Result<Vec<OpenCl>, OpenClError>> = OnceLock::new();
    available(test, "opencl", DEVICES.get_or_init(OpenCl::open_all)).map_or(&[], Vec::as_slice)
}
