//! What came of each case, and the sum of it.

use std::fmt;

/// Why a case of a known group is not run. docs/verify.md lists all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub &'static str);

/// Loading is the business of another program.
pub(crate) const CHECKPOINT: Skip = Skip("checkpoint: this program loads no checkpoints");
/// The library's shared experts have the routed experts' activation.
pub(crate) const SHARED_ACTIVATION: Skip =
    Skip("shared-activation: the library has no shared expert with another activation than the routed ones");

/// A difference and how large it may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// the tensor
    pub name: String,
    /// the difference in the tensor's metric; for integers the number of elements that differ
    pub error: f64,
    /// the largest difference allowed; 0 for integers
    pub tolerance: f64,
}

impl Difference {
    /// Whether it is small enough. NaN is not.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }

    /// The error in units of the tolerance; infinite for NaN and for integers that differ.
    pub fn share(&self) -> f64 {
        if self.error == 0.0 {
            0.0
        } else if self.error.is_nan() || self.tolerance == 0.0 {
            f64::INFINITY
        } else {
            self.error / self.tolerance
        }
    }
}

/// What came of one case.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// every tensor agrees; the one that came closest to its tolerance
    Passed(Difference),
    /// a tensor differs: the worst one
    Differs(Difference),
    /// the case could not be compared
    Failed(String),
    /// the case was not run, for a reason that docs/verify.md lists
    Skipped(Skip),
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// the case, or the file's path where it has no readable name
    pub name: String,
    /// what came of it
    pub outcome: Outcome,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.outcome {
            Outcome::Passed(worst) => write!(f, "ok {name} {:.1e} {:.1e}", worst.error, worst.tolerance),
            Outcome::Differs(worst) => {
                let Difference { name: tensor, error, tolerance } = worst;
                write!(f, "FAIL {name} {error:.1e} {tolerance:.1e} {tensor}")
            }
            Outcome::Failed(why) => write!(f, "FAIL {name} nan nan {}", why.replace('\n', " ")),
            Outcome::Skipped(reason) => write!(f, "skip {name} {reason}"),
        }
    }
}

/// How many cases passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// cases that agree
    pub passed: usize,
    /// cases that differ or could not be compared
    pub failed: usize,
    /// cases that were not run
    pub skipped: usize,
}

impl Summary {
    /// Counts one more line.
    pub fn add(&mut self, line: &Line) {
        *match line.outcome {
            Outcome::Passed(_) => &mut self.passed,
            Outcome::Differs(_) | Outcome::Failed(_) => &mut self.failed,
            Outcome::Skipped(_) => &mut self.skipped,
        } += 1;
    }

    /// Whether something was found and nothing failed.
    pub fn good(&self) -> bool {
        self.failed == 0 && self.passed + self.skipped > 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}
