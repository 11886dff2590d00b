//! What the program prints while it trains.

use super::run::StepReport;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt;
use std::io::{IsTerminal, Write};

impl fmt::Display for StepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "step {:>5}  loss {:>7.4}  tokens/s {:>9}  grad norm {:>7.4}  max vio {:>6.3}  load entropy {:.4}  dropped {}",
            self.step,
            self.loss,
            grouped(self.tokens_per_second),
            self.grad_norm,
            self.max_violation(),
            self.load_entropy(),
            self.dropped(),
        )
    }
}

/// A number with its thousands apart: `12,345`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Prints a line per step, above a progress bar if standard error is a terminal. Of many ranks one prints.
pub struct Log {
    bar: ProgressBar,
    prints: bool,
}

impl Log {
    /// A log of a run of `steps` steps of which `done` are done, on a rank that prints or does not.
    pub fn new(steps: u64, done: u64, prints: bool) -> Self {
        let target = if prints && std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(steps), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {eta} left") {
            bar.set_style(style);
        }
        bar.reset_eta();
        Self { bar, prints }
    }

    /// Prints a step's line.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn step(&self, report: &StepReport) -> Result<()> {
        self.bar.set_position(report.step);
        self.line(report)
    }

    /// Prints any other line.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn line(&self, line: &dyn fmt::Display) -> Result<()> {
        if !self.prints {
            return Ok(());
        }
        self.bar.suspend(|| writeln!(std::io::stdout(), "{line}")).context("cannot print")
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::Figures;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(grouped(7.0), "7");
        assert_eq!(grouped(1234.4), "1,234");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
    }

    #[test]
    fn a_line_tells_the_worst_layer() {
        let layer = |max_violation, load_entropy, dropped| Figures {
            max_violation,
            load_entropy,
            dropped,
            ..Figures::default()
        };
        let report = StepReport {
            step: 12,
            loss: 2.5,
            grad_norm: 0.75,
            tokens_per_second: 20480.0,
            figures: vec![layer(0.25, 0.5, 1), layer(1.0, 0.75, 2)],
        };
        let line = report.to_string();
        for part in [
            "step    12",
            "loss  2.5000",
            "20,480",
            "0.7500",
            "max vio  1.000",
            "load entropy 0.5000",
            "dropped 3",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}
