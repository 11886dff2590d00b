//! The timed pass itself.

use super::{Options, Pass, Shape, fill, median, repeat};
use anyhow::Result;
use moe_core::{AdamW, MoeDevice, MoeLayer, Runner, Scalar};
use std::time::{Duration, Instant};

/// What was measured.
pub(super) struct Timing {
    /// middle of the runs, in seconds
    pub(super) median: f64,
    /// runs timed
    pub(super) runs: usize,
    /// bytes allocated on the host while they ran
    pub(super) allocated: usize,
    /// bytes kept for backward, per token
    pub(super) kept: usize,
}

/// Warms up, then times; stays inside the device's threads all the while.
pub(super) fn time<D: MoeDevice<T>, T: Scalar>(
    options: &Options,
    mut layer: MoeLayer<D, T>,
    runner: &mut Runner<D, T>,
    mut adam: Option<AdamW<D, T>>,
    allocated: &(impl Fn() -> usize + Send + Sync),
) -> Result<Timing> {
    let Shape { tokens, width, .. } = options.shape;
    let x = runner.upload(fill::tokens::<T>(tokens, width, 1)?.view())?;
    let mut y = runner.like(&x)?;
    let budget = Duration::from_secs_f64(options.seconds.clamp(0.0, 600.0));
    if options.pass == Pass::Fwd {
        let layer = layer.into_inference()?;
        return measure(budget, 0, allocated, || {
            runner.forward(&layer, &x, &mut y)?;
            Ok(runner.session().sync()?)
        });
    }
    let dy = runner.upload(fill::tokens::<T>(tokens, width, 2)?.view())?;
    let mut dx = runner.like(&x)?;
    let (mut saved, mut grads) = (runner.saved(layer.config())?, layer.grads()?);
    let kept = saved.bytes_per_token();
    measure(budget, kept, allocated, || {
        if !options.accumulate {
            grads.clear();
        }
        runner.forward_train(&layer, &x, &mut saved, &mut y)?;
        runner.backward(&layer, &x, &mut saved, &dy, &mut dx, &mut grads)?;
        if let Some(adam) = &mut adam {
            adam.step(runner, &mut layer, &mut grads, 1e-6)?;
        }
        Ok(runner.session().sync()?)
    })
}

fn measure(
    budget: Duration,
    kept: usize,
    allocated: &impl Fn() -> usize,
    mut work: impl FnMut() -> Result<()>,
) -> Result<Timing> {
    let (begin, mut runs) = (Instant::now(), 0);
    while runs < 2 || begin.elapsed() < budget / 10 {
        work()?;
        runs += 1;
    }
    let mut during = 0;
    let mut times = repeat(budget, || {
        let before = allocated();
        work()?;
        during += allocated() - before;
        Ok(())
    })?;
    Ok(Timing { median: median(&mut times), runs: times.len(), allocated: during, kept })
}
