//! The line of JSON that `bench` prints.

use super::pass::Timing;
use super::{Options, Pass, Shape};
use moe_core::{Scalar, Trace};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// What was measured, with the settings it was measured under.
pub struct Report(Value);

impl Report {
    pub(super) fn new<T: Scalar>(
        options: &Options,
        timing: &Timing,
        pack: Duration,
        dense: f64,
        trace: &Trace,
    ) -> Self {
        let Shape { tokens, width, hidden, experts, top_k } = options.shape;
        let products = if options.pass == Pass::Fwd { 6.0 } else { 18.0 };
        let work = products * [tokens, top_k, width, hidden].iter().map(|n| *n as f64).product::<f64>();
        let rate = if timing.median > 0.0 { work / timing.median } else { 0.0 };
        let mut paths = Map::new();
        for (op, path, launches) in trace.counts() {
            let of_op = paths.entry(op.0).or_insert_with(|| json!({}));
            of_op[path.0] = json!(launches);
        }
        Self(json!({
            "device": options.device.to_string(),
            "dtype": T::DTYPE.to_string(),
            "pass": options.pass.name(),
            "shape": [tokens, width, hidden, experts, top_k],
            "threads": options.threads,
            "runs": timing.runs,
            "median_ms": timing.median * 1e3,
            "tflops": rate / 1e12,
            "dense_tflops": dense / 1e12,
            "share": if dense > 0.0 { rate / dense } else { 0.0 },
            "allocated_bytes": timing.allocated,
            "kept_bytes": timing.kept,
            "paths": paths,
            "pack_ms": pack.as_secs_f64() * 1e3,
            "wgrad": if options.accumulate { "accumulate" } else { "overwrite" },
            "gate": options.gate.name(),
        }))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Self::Fwd => "fwd",
            Self::Fwdbwd => "fwdbwd",
            Self::Step => "step",
        }
    }
}
