//! `bench`: the time of one layer's pass, beside the device's own dense product in the same run.

pub mod decode;
mod dense;
mod fill;
mod ops;
mod options;
mod pass;
mod report;

pub use ops::measure_ops;
pub use options::{Dtype, Options, Pass, Shape};
pub use report::Report;

use anyhow::Result;
use moe_core::{AdamW, MoeDevice, Runner, Scalar};
use std::time::{Duration, Instant};

/// Measures one pass on a device. `allocated` reads how many bytes the process has allocated so far.
///
/// # Errors
/// If the shape is no layer, or the device fails.
pub fn measure<D: MoeDevice<T>, T: Scalar>(
    device: &D,
    options: &Options,
    allocated: impl Fn() -> usize + Send + Sync,
) -> Result<Report> {
    let config = options.config()?;
    let mut layer = fill::layer::<D, T>(device, &config, 1)?;
    let mut runner = Runner::<D, T>::new(device, &config, options.shape.tokens)?;
    let start = Instant::now();
    layer.update(&mut runner, |_, _| Ok(()))?;
    runner.session().sync()?;
    let pack = start.elapsed();
    let step = (options.pass == Pass::Step).then(|| AdamW::new(&layer)).transpose()?;
    let before = dense::rate::<D, T>(device)?;
    let timing = device.enter(|| pass::time(options, layer, &mut runner, step, &allocated))?;
    let after = dense::rate::<D, T>(device)?;
    Ok(Report::new::<T>(options, &timing, pack, (before + after) / 2.0, runner.trace()))
}

/// Runs `work` again and again, and returns the time of each run: at least five, and as many as fit in `budget`.
fn repeat(budget: Duration, mut work: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    let (begin, mut times) = (Instant::now(), Vec::with_capacity(1024));
    while times.len() < 5 || (begin.elapsed() < budget && times.len() < 1024) {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// The middle of some times, in seconds.
fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64)
}
