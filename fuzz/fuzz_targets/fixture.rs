//! Fixture files of any content.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    moe_examples::fuzz::fixture(bytes);
});
