//! Report: what a device was asked, and where it answered wrong.

use moe_core::OpId;
use std::fmt;

/// One wrong answer.
#[derive(Clone, Debug)]
pub struct Failure {
    /// the op
    pub op: OpId,
    /// what is particular about the sample
    pub sample: String,
    /// sizes and settings
    pub dims: String,
    /// the argument, or what was looked at
    pub argument: String,
    /// what was wanted and what was got
    pub problem: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, sample, dims, argument, problem } = self;
        write!(f, "{op}, {sample}: `{argument}` {problem}\n    {dims}")
    }
}

/// Something that could not be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// the op
    pub op: OpId,
    /// why
    pub reason: &'static str,
    /// how often
    pub times: usize,
}

/// Answers of one device for one storage type.
#[derive(Clone, Debug, Default)]
pub struct Report {
    passed: Vec<(OpId, usize)>,
    failures: Vec<Failure>,
    skipped: Vec<Skip>,
}

impl Report {
    /// Nothing asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts right answers.
    pub fn pass(&mut self, op: OpId) {
        match self.passed.iter_mut().find(|(id, _)| *id == op) {
            Some((_, count)) => *count += 1,
            None => self.passed.push((op, 1)),
        }
    }

    /// Notes a wrong answer.
    pub fn fail(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    /// Counts a question that does not apply.
    pub fn skip(&mut self, op: OpId, reason: &'static str) {
        let same = |skip: &&mut Skip| skip.op == op && skip.reason == reason;
        match self.skipped.iter_mut().find(same) {
            Some(skip) => skip.times += 1,
            None => self.skipped.push(Skip { op, reason, times: 1 }),
        }
    }

    /// Right answers, over all ops.
    pub fn passed(&self) -> usize {
        self.passed.iter().map(|(_, count)| count).sum()
    }

    /// Right answers of one op.
    pub fn passed_by(&self, op: OpId) -> usize {
        let found = self.passed.iter().find(|(id, _)| *id == op);
        found.map_or(0, |(_, count)| *count)
    }

    /// Wrong answers.
    pub fn failures(&self) -> &[Failure] {
        &self.failures
    }

    /// Questions that did not apply.
    pub fn skipped(&self) -> &[Skip] {
        &self.skipped
    }

    /// Fails a test with the whole report unless every answer was right and there was at least one.
    ///
    /// # Panics
    /// Then.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(self.failures.is_empty() && self.passed() > 0, "{self}");
    }
}

/// Failures that are listed one by one, per op.
const LISTED: usize = 6;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped: usize = self.skipped.iter().map(|skip| skip.times).sum();
        let (passed, failed) = (self.passed(), self.failures.len());
        writeln!(f, "{passed} passed, {failed} failed, {skipped} skipped")?;
        let mut listed: Vec<(OpId, usize)> = Vec::new();
        for failure in &self.failures {
            let at = listed.iter().position(|(op, _)| *op == failure.op);
            let at = at.unwrap_or_else(|| {
                listed.push((failure.op, 0));
                listed.len() - 1
            });
            listed[at].1 += 1;
            if listed[at].1 <= LISTED {
                writeln!(f, "  {failure}")?;
            }
        }
        for (op, count) in listed.iter().filter(|(_, count)| *count > LISTED) {
            writeln!(f, "  {op}: {} more failures", count - LISTED)?;
        }
        for skip in &self.skipped {
            writeln!(f, "  skipped {} of {}: {}", skip.times, skip.op, skip.reason)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure {
            op: OpId("sort"),
            sample: "one token".into(),
            dims: "SortDims { slots: 1 }".into(),
            argument: "offsets".into(),
            problem: "at 2: wanted 1, got 0".into(),
        }
    }

    #[test]
    fn a_failure_says_op_sample_argument_and_dims() {
        let mut report = Report::new();
        report.fail(failure());
        let text = report.to_string();
        for part in ["sort", "one token", "`offsets`", "wanted 1, got 0", "slots: 1"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    #[should_panic(expected = "0 passed, 1 failed")]
    fn one_failure_fails_the_test() {
        let mut report = Report::new();
        report.fail(failure());
        report.assert_passed();
    }

    #[test]
    #[should_panic(expected = "0 passed")]
    fn a_report_without_answers_fails_the_test() {
        Report::new().assert_passed();
    }

    #[test]
    fn many_failures_of_one_op_do_not_hide_the_others() {
        let mut report = Report::new();
        (0..20).for_each(|_| report.fail(failure()));
        report.fail(Failure { op: OpId("merge"), ..failure() });
        let text = report.to_string();
        assert!(text.contains("merge, one token") && text.contains("14 more"), "{text}");
    }
}
