//! The layer's passes at the small shape, T,D,F,E,K = 512,256,512,8,2, whole training steps, and inference of one and eight tokens,
//! in every storage type: `cargo bench -p moe-cpu`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use moe_core::ndarray::Array2;
use moe_core::{Accum, AdamW, Device, Limits, MoeConfig, MoeDevice, MoeLayer, Runner, Scalar, Sizes};
use moe_cpu::Cpu;
use std::error::Error;

const TOKENS: usize = 512;
const SIZES: Sizes = Sizes { width: 256, hidden: 512, experts: 8, top_k: 2 };

/// Rows of values in -1 to 1 without a pattern.
fn noise<T: Scalar>(seed: u64, rows: usize) -> Array2<T> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, SIZES.width), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::narrow(T::Acc::of((state >> 40) as f64 / f64::from(1 << 23) - 1.0))
    })
}

fn passes<T: Scalar>(criterion: &mut Criterion) -> Result<(), Box<dyn Error>>
where
    Cpu: MoeDevice<T>,
{
    let (device, config) = (Cpu::new()?, MoeConfig::new(SIZES)?);
    let mut layer = MoeLayer::<_, T>::init(&device, &config, 0)?;
    let mut runner = Runner::new(&device, &config, TOKENS)?;
    let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
    let (x, dy) =
        (runner.upload(noise::<T>(1, TOKENS).view())?, runner.upload(noise::<T>(2, TOKENS).view())?);
    let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
    let products = (TOKENS * SIZES.top_k * SIZES.width * SIZES.hidden) as u64;
    let mut group = criterion.benchmark_group(format!("layer {}", T::DTYPE));
    // Operations of the expert products, 6 T K D F forward and three times that with backward.
    group.throughput(Throughput::Elements(6 * products));
    group.bench_function("forward", |bencher| {
        device.enter(|| bencher.iter(|| runner.forward(&layer, &x, &mut y).expect("forward runs")));
    });
    group.throughput(Throughput::Elements(18 * products));
    group.bench_function("forward and backward", |bencher| {
        device.enter(|| {
            bencher.iter(|| {
                grads.clear();
                runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward runs");
                runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward runs");
            });
        });
    });
    let mut adam = AdamW::new(&layer)?;
    group.bench_function("step", |bencher| {
        device.enter(|| {
            bencher.iter(|| {
                runner.forward_train(&layer, &x, &mut saved, &mut y).expect("forward runs");
                runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads).expect("backward runs");
                adam.step(&mut runner, &mut layer, &mut grads, 1e-6).expect("a step runs");
            });
        });
    });
    group.finish();
    Ok(())
}

fn decode<T: Scalar>(criterion: &mut Criterion) -> Result<(), Box<dyn Error>>
where
    Cpu: MoeDevice<T>,
{
    let (device, config) = (Cpu::new()?, MoeConfig::new(SIZES)?);
    let layer = MoeLayer::<_, T>::init(&device, &config, 0)?.into_inference()?;
    let mut group = criterion.benchmark_group(format!("layer {}, few tokens", T::DTYPE));
    for tokens in [1, 8] {
        let mut runner = Runner::with_limits(&device, &config, Limits::inference(tokens))?;
        let x = runner.upload(noise::<T>(1, tokens).view())?;
        let mut y = runner.like(&x)?;
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(format!("forward of {tokens}"), |bencher| {
            device.enter(|| bencher.iter(|| runner.forward(&layer, &x, &mut y).expect("forward runs")));
        });
    }
    group.finish();
    Ok(())
}

fn every_type(criterion: &mut Criterion) {
    let passes = [passes::<f32>(criterion), passes::<bf16>(criterion), passes::<f16>(criterion)];
    let few = [decode::<f32>(criterion), decode::<bf16>(criterion), decode::<f16>(criterion)];
    passes.into_iter().chain(few).for_each(|result| result.expect("the layer fits the machine"));
}

criterion_group!(layer, every_type);
criterion_main!(layer);
