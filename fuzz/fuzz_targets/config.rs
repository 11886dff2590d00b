//! Configurations: refused with an error, or run.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    moe_examples::fuzz::config(bytes);
});
