//! The ops of a layer one by one: each launched again and again on its own arguments, with the way that it took.

mod launches;
mod plan;

use super::{Options, median, repeat};
use anyhow::Result;
use moe_core::{Device, MoeDevice, Scalar, Session, Trace};
use plan::Plan;
use serde_json::{Value, json};
use std::time::Duration;

/// Launches between two waits for the device, so that waiting costs little.
const IN_A_ROW: u32 = 10;

/// A session that notes the time of every op it runs.
struct Clock<D: Device> {
    session: Session<D>,
    budget: Duration,
    lines: Vec<Value>,
}

impl<D: Device> Clock<D> {
    /// Times one op, which does `work` floating-point operations in products.
    fn time(
        &mut self,
        name: &str,
        work: f64,
        mut launch: impl FnMut(&mut Session<D>) -> Result<()>,
    ) -> Result<()> {
        self.session.trace_mut().clear();
        launch(&mut self.session)?;
        self.session.sync()?;
        let session = &mut self.session;
        let mut times = repeat(self.budget, || {
            for _ in 0..IN_A_ROW {
                launch(session)?;
            }
            Ok(session.sync()?)
        })?;
        let seconds = median(&mut times) / f64::from(IN_A_ROW);
        let path = last_path(self.session.trace());
        self.lines.push(json!({
            "op": name,
            "path": path,
            "us": seconds * 1e6,
            "tflops": if seconds > 0.0 { work / seconds / 1e12 } else { 0.0 },
        }));
        Ok(())
    }
}

fn last_path(trace: &Trace) -> &'static str {
    trace.counts().last().map_or("", |(_, path, _)| path.0)
}

/// Times every op of a training step and of an optimizer step; one line of JSON each.
///
/// # Errors
/// If the shape is no layer, or the device fails.
pub fn measure_ops<D: MoeDevice<T>, T: Scalar>(device: &D, options: &Options) -> Result<Vec<String>> {
    let plan = Plan::new(options)?;
    let session = Session::new(device, plan.scratch::<D, T>(device))?;
    let budget = Duration::from_secs_f64((options.seconds / 10.0).clamp(0.0, 60.0));
    let mut clock = Clock { session, budget, lines: Vec::new() };
    device.enter(|| launches::time_all::<D, T>(&plan, &mut clock))?;
    Ok(clock.lines.iter().map(Value::to_string).collect())
}
