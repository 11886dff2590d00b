//! Passes of the whole layer: shares of the multipliers' rate, or for few tokens of the rate of reading the weights.

use crate::Options;
use crate::cases::{Shape, noise};
use crate::turns::{Turns, middle, turns};
use moe_core::ndarray::Array2;
use moe_core::{AdamW, Limits, MoeConfig, MoeDevice, MoeLayer, Runner, Sizes};
use moe_cpu::{Cpu, Float};
use std::error::Error;
use std::time::Instant;

/// Up to this many tokens the weights' bytes are the floor.
const FEW: usize = 16;
/// Bytes that are read to find the rate of reading, beside each turn.
const BYTES: usize = 1 << 27;
/// How often all weights are packed.
const PACKINGS: usize = 5;

/// Measures the passes that are wanted.
pub(crate) fn measure<T: Float>(
    cpu: &Cpu,
    options: &Options,
    title: &str,
    shape: Shape,
) -> Result<(), Box<dyn Error>>
where
    Cpu: MoeDevice<T>,
{
    let Shape { tokens, width, hidden, experts, top_k } = shape;
    let config = MoeConfig::new(Sizes { width, hidden, experts, top_k })?;
    let matrix = |seed| {
        let mut rows = Array2::from_elem((tokens, width), T::default());
        noise(seed, 1.0, rows.as_slice_mut().unwrap_or(&mut []));
        rows
    };
    let layer = || MoeLayer::<_, T>::init(cpu, &config, 1);
    if options.wants("fwd") {
        let layer = layer()?.into_inference()?;
        let mut runner = Runner::with_limits(cpu, &config, Limits::inference(tokens))?;
        let x = runner.upload(matrix(1).view())?;
        let mut y = runner.like(&x)?;
        if tokens <= FEW {
            few::<T>(cpu, options, title, shape, &layer, &mut runner, &x, &mut y)?;
        } else {
            let times = cpu.enter_turns::<T>(options, || runner.forward(&layer, &x, &mut y))?;
            line(title, "fwd", shape, 1.0, &times);
        }
    }
    if tokens <= FEW || !(options.wants("fwdbwd") || options.wants("step")) {
        return Ok(());
    }
    let mut layer = layer()?;
    let mut runner = Runner::new(cpu, &config, tokens)?;
    let (mut saved, mut grads) = (runner.saved(&config)?, layer.grads()?);
    let (x, dy) = (runner.upload(matrix(1).view())?, runner.upload(matrix(2).view())?);
    let (mut y, mut dx) = (runner.like(&x)?, runner.like(&x)?);
    if options.wants("fwdbwd") {
        let times = cpu.enter_turns::<T>(options, || {
            grads.clear();
            runner.forward_train(&layer, &x, &mut saved, &mut y)?;
            runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads)
        })?;
        line(title, "fwdbwd", shape, 3.0, &times);
        let mut packings = Vec::new();
        for _ in 0..PACKINGS {
            let start = Instant::now();
            layer.update(&mut runner, |_, _| Ok(()))?;
            packings.push(start.elapsed().as_secs_f64() * 1e3);
        }
        println!("{title} packing: {:.2} ms, the middle of {PACKINGS}", middle(packings));
    }
    if options.wants("step") {
        let mut adam = AdamW::new(&layer)?;
        let times = cpu.enter_turns::<T>(options, || {
            runner.forward_train(&layer, &x, &mut saved, &mut y)?;
            runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads)?;
            adam.step(&mut runner, &mut layer, &mut grads, 1e-6)
        })?;
        line(title, "step", shape, 3.0, &times);
    }
    Ok(())
}

/// Turns with the multipliers' rate, all inside the device's threads.
trait EnterTurns {
    fn enter_turns<T: Float>(
        &self,
        options: &Options,
        work: impl FnMut() -> Result<(), moe_core::Error<moe_cpu::CpuError>> + Send,
    ) -> Result<Turns, moe_core::Error<moe_cpu::CpuError>>;
}

impl EnterTurns for Cpu {
    fn enter_turns<T: Float>(
        &self,
        options: &Options,
        work: impl FnMut() -> Result<(), moe_core::Error<moe_cpu::CpuError>> + Send,
    ) -> Result<Turns, moe_core::Error<moe_cpu::CpuError>> {
        moe_core::Device::enter(self, || {
            turns(options.budget, self.threads(), || self.peak_flops::<T>(3), work)
        })
    }
}

fn line(title: &str, pass: &str, shape: Shape, times: f64, turns: &Turns) {
    let work = times * 6.0 * (shape.slots() * shape.width * shape.hidden) as f64;
    let share = |seconds: f64| 100.0 * work / seconds / turns.limit();
    println!(
        "{title} {pass}: {:.1} GFLOP/s; share of {:.0}: middle of turns {:.0} %, fastest turn {:.0} %, by processor time {:.0} %; \
         middle {:.2} ms ({} turns)",
        work / turns.fastest() / 1e9,
        turns.limit() / 1e9,
        100.0 * turns.share(work),
        share(turns.fastest()),
        100.0 * turns.share_alone(work),
        turns.median() * 1e3,
        turns.count(),
    );
}

/// A forward pass of few tokens: the bytes of the experts that they touch, and how long reading these takes.
#[allow(clippy::too_many_arguments, reason = "one caller")]
fn few<T: Float>(
    cpu: &Cpu,
    options: &Options,
    title: &str,
    shape: Shape,
    layer: &MoeLayer<Cpu, T>,
    runner: &mut Runner<Cpu, T>,
    x: &moe_core::Rows<Cpu, T>,
    y: &mut moe_core::Rows<Cpu, T>,
) -> Result<(), Box<dyn Error>>
where
    Cpu: MoeDevice<T>,
{
    runner.forward(layer, x, y)?;
    let touched = runner.forward_figures()?.tokens_per_expert.iter().filter(|count| **count > 0).count();
    let values = touched * 3 * shape.width * shape.hidden + shape.experts * shape.width;
    let bytes = (values * size_of::<T>()) as f64;
    let reader = cpu.reader(BYTES)?;
    let times = moe_core::Device::enter(cpu, || {
        turns(options.budget, cpu.threads(), || reader.rate(), || runner.forward(layer, x, y))
    })?;
    let floor = bytes / times.limit();
    println!(
        "{title} fwd: {:.3} ms; times the floor of {:.1} MB at {:.1} GB/s: middle of turns {:.2}, fastest turn {:.2}, \
         by processor time {:.2}; middle {:.3} ms ({} turns)",
        times.fastest() * 1e3,
        bytes / 1e6,
        times.limit() / 1e9,
        1.0 / times.share(bytes),
        times.fastest() / floor,
        times.alone() / floor,
        times.median() * 1e3,
        times.count(),
    );
    Ok(())
}
