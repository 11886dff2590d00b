//! Inference of a small layer on `Host`, and a checksum of the output's bits. The program without std and the one with it both
//! include this file.

extern crate alloc;

use alloc::vec::Vec;
use moe_core::ndarray::{ArrayView2, ArrayViewMut2};
use moe_core::{Error, Host, HostError, Limits, MoeConfig, MoeLayer, Runner, SharedExperts, Sizes};

const TOKENS: usize = 24;
const WIDTH: usize = 16;

/// Runs the layer; FNV-1a of the output's bits.
pub fn checksum() -> Result<u64, Error<HostError>> {
    let mut config = MoeConfig::new(Sizes { width: WIDTH, hidden: 32, experts: 8, top_k: 2 })?;
    config.shared = Some(SharedExperts { hidden: 32, gated: true });
    let layer = MoeLayer::<_, f32>::init(&Host, &config, 7)?;
    let mut runner = Runner::with_limits(&Host, &config, Limits::inference(TOKENS))?;

    // Sixteenths, so exact in f32.
    let input: Vec<f32> = (0..TOKENS * WIDTH).map(|i| ((i * 37 % 64) as f32 - 32.0) / 16.0).collect();
    let mut output = alloc::vec![0.0; TOKENS * WIDTH];
    let shape = |_| Error::State("the buffers do not have the layer's shape");
    let x = ArrayView2::from_shape((TOKENS, WIDTH), &input).map_err(shape)?;
    let x = runner.upload(x)?;
    let mut y = runner.like(&x)?;
    runner.forward(&layer, &x, &mut y)?;
    runner.read(&y, ArrayViewMut2::from_shape((TOKENS, WIDTH), &mut output).map_err(shape)?)?;
    Ok(fnv(&output))
}

fn fnv(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// 16 hexadecimal digits and the end of the line.
pub fn hex(checksum: u64) -> [u8; 17] {
    let mut text = [b'\n'; 17];
    for (at, digit) in text[..16].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(checksum >> (60 - 4 * at)) as usize & 15];
    }
    text
}
