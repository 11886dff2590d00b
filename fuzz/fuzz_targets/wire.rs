//! What comes over a wire: decoded to what its encoder makes, or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    moe_dist::fuzz::wire(bytes);
});
