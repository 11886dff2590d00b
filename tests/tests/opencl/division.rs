//! The router's division, `divide` in kernels/exact.cl: on every device the quotient that the host gives.

use moe_opencl::{Listed, OpenCl};
use moe_tests::{Random, available};
use ocl::{Buffer, Device, Platform, ProQue};

const SOURCE: &str = concat!(
    include_str!("../../../moe-opencl/kernels/prelude.cl"),
    include_str!("../../../moe-opencl/kernels/exact.cl"),
    "kernel void divide_all(global const float *n, global const float *d, global float *quotients) {
        size_t at = get_global_id(0);
        quotients[at] = divide(n[at], d[at]);
    }"
);

/// The quotients on a device, whose own rounding of a division is left to it.
fn quotients(found: &Listed, pairs: &[(f32, f32)]) -> ocl::Result<Vec<f32>> {
    let platform = Platform::list()[found.platform];
    let mut source = ocl::Program::builder();
    source.source(SOURCE).cmplr_opt("-cl-std=CL1.2 -DSTORAGE=0");
    let queue = ProQue::builder()
        .platform(platform)
        .device(Device::list_all(platform)?[found.device])
        .prog_bldr(source)
        .dims(pairs.len())
        .build()?;
    let (n, d): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
    let [n, d] = [n, d].map(|values| -> ocl::Result<Buffer<f32>> {
        let buffer = queue.create_buffer()?;
        buffer.write(&values).enq()?;
        Ok(buffer)
    });
    let mut quotients = vec![f32::NAN; pairs.len()];
    let out = queue.create_buffer::<f32>()?;
    let kernel = queue.kernel_builder("divide_all").arg(&n?).arg(&d?).arg(&out).build()?;
    // SAFETY: every work item has an element of each buffer.
    unsafe { kernel.enq()? };
    out.read(&mut quotients).enq()?;
    Ok(quotients)
}

fn are_the_hosts(test: &str, pairs: &[(f32, f32)]) {
    let listed = OpenCl::list();
    for found in
        available(test, "opencl", &listed).into_iter().flatten().filter(|found| found.facts.subnormals)
    {
        let got = quotients(found, pairs).expect("the kernel runs");
        for ((n, d), got) in pairs.iter().zip(got) {
            let want = n / d;
            let same = want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan());
            assert!(same, "{found}: {n:e} / {d:e} is {want:e}, not {got:e}");
        }
    }
}

/// A positive number with any bits.
fn positive(random: &mut Random) -> f32 {
    f32::from_bits(random.below(f32::INFINITY.to_bits() as usize) as u32)
}

#[test]
fn odd_numbers_divide_as_on_the_host() {
    let ends = [0, 1, 2, 3, 0x3f_ffff, 0x40_0000, 0x40_0001, 0x55_5555, 0x7f_fffe, 0x7f_ffff];
    let exponents = [0, 1, 2, 23, 24, 25, 26, 60, 103, 126, 127, 128, 150, 200, 252, 253, 254];
    let mut odd: Vec<f32> =
        exponents.iter().flat_map(|e| ends.map(|low| f32::from_bits(e << 23 | low))).collect();
    odd.extend([f32::INFINITY, f32::NAN, 1e-20, 1.0 / 3.0]);
    let pairs: Vec<(f32, f32)> = odd.iter().flat_map(|n| odd.iter().map(move |d| (*n, *d))).collect();
    are_the_hosts("odd_numbers_divide_as_on_the_host", &pairs);
}

#[test]
fn random_numbers_divide_as_on_the_host() {
    let mut random = Random::new(3);
    let pairs: Vec<(f32, f32)> =
        (0..1 << 21).map(|_| (positive(&mut random), positive(&mut random))).collect();
    are_the_hosts("random_numbers_divide_as_on_the_host", &pairs);
}

#[test]
fn quotients_near_the_middle_of_two_numbers_divide_as_on_the_host() {
    let mut random = Random::new(4);
    let near_middle = |_| {
        let d = f64::from(positive(&mut random).clamp(1e-20, 1e20));
        // One bit more than a number has; below the normal numbers that bit stands higher.
        let bits = 1 + random.below(24) as i32;
        let middle =
            (random.below(1 << bits) * 2 + 1) as f64 * 2_f64.powi([-150, -30 - bits][random.below(2)]);
        let n = (middle * d) as f32;
        let n = f32::from_bits(n.to_bits().saturating_add_signed(random.below(3) as i32 - 1));
        (n, d as f32)
    };
    let pairs: Vec<(f32, f32)> = (0..1 << 21).map(near_middle).collect();
    are_the_hosts("quotients_near_the_middle_of_two_numbers_divide_as_on_the_host", &pairs);
}

#[test]
fn every_significand_divides_one_as_on_the_host() {
    let pairs: Vec<(f32, f32)> = (0..1 << 23).map(|low| (1.0, f32::from_bits(0x3f80_0000 | low))).collect();
    are_the_hosts("every_significand_divides_one_as_on_the_host", &pairs);
}
