//! Check: the comparison of one case's results with its file, tensor by tensor.
//!
//! It remembers what was compared. At the end every reference tensor of the file must have been compared, or be one that
//! [`uncompared_if_any`](Check::uncompared_if_any) names: a file cannot hold a result that goes unnoticed.

use super::report::{Difference, Outcome};
use crate::fixture::{Case, FixtureError, Metric, Tolerances};
use moe_core::{Accum, Scalar};
use std::collections::BTreeSet;

/// The comparison of one case.
pub(crate) struct Check<'a> {
    /// the case
    pub(crate) case: &'a Case,
    tolerances: Tolerances,
    done: BTreeSet<String>,
    worst: Option<Difference>,
}

/// Parts of a name that mark a tensor as a reference. `out32.` and the like are information.
const REFERENCES: [&str; 6] = ["out", "grad", "grad0", "final", "exch", "grad_partial"];

impl<'a> Check<'a> {
    /// A comparison of nothing so far.
    pub(crate) fn new(case: &'a Case, tolerances: Tolerances) -> Self {
        Self { case, tolerances, done: BTreeSet::new(), worst: None }
    }

    /// Compares floats with the tensor `name`, with the tolerance for gradients if that is what the name says.
    ///
    /// # Errors
    /// [`FixtureError`] if the tensor is missing or has another number of elements.
    pub(crate) fn close<T: Scalar>(&mut self, name: &str, got: &[T]) -> Result<(), FixtureError> {
        let gradient = name.split('.').any(|part| part.starts_with("grad"));
        let tolerance = if gradient { self.tolerances.grad } else { self.tolerances.out };
        self.within(name, got, self.tolerances.metric, tolerance)
    }

    /// Compares floats with the tensor `name` if the file has it.
    ///
    /// # Errors
    /// [`FixtureError`] if the tensor has another number of elements.
    pub(crate) fn close_if_any<T: Scalar>(&mut self, name: &str, got: &[T]) -> Result<(), FixtureError> {
        match self.case.find(name) {
            Some(_) => self.close(name, got),
            None => Ok(()),
        }
    }

    /// Compares floats with the tensor `name` in this metric.
    ///
    /// # Errors
    /// [`FixtureError`] if the tensor is missing or has another number of elements.
    pub(crate) fn within<T: Scalar>(
        &mut self,
        name: &str,
        got: &[T],
        metric: Metric,
        tolerance: f64,
    ) -> Result<(), FixtureError> {
        let wanted = self.case.tensor(name)?.floats()?;
        self.near(name, got, &wanted, metric, tolerance)
    }

    /// Compares floats with a part of a tensor, which is called `name`, with the tolerance for gradients.
    ///
    /// # Errors
    /// [`FixtureError`] if the part has another number of elements.
    pub(crate) fn close_to_part<T: Scalar>(
        &mut self,
        name: &str,
        got: &[T],
        wanted: &[f32],
    ) -> Result<(), FixtureError> {
        self.near(name, got, wanted, self.tolerances.metric, self.tolerances.grad)
    }

    fn near<T: Scalar>(
        &mut self,
        name: &str,
        got: &[T],
        wanted: &[f32],
        metric: Metric,
        tolerance: f64,
    ) -> Result<(), FixtureError> {
        self.same_length(name, got.len(), wanted.len())?;
        let (mut distance, mut largest) = (0.0_f64, 0.0_f64);
        for (got, wanted) in got.iter().zip(wanted) {
            let (got, wanted) = (got.widen().to_f64(), f64::from(*wanted));
            // `max` would lose a NaN.
            let here = (got - wanted).abs();
            distance = if here.is_nan() || here > distance { here } else { distance };
            largest = largest.max(wanted.abs());
        }
        let error = match metric {
            Metric::Relative { floor } => distance / largest.max(floor),
            Metric::Absolute => distance,
        };
        self.note(name, error, tolerance);
        Ok(())
    }

    /// Compares integers with the tensor `name`: all must be equal.
    ///
    /// # Errors
    /// [`FixtureError`] if the tensor is missing or has another number of elements.
    pub(crate) fn exact(&mut self, name: &str, got: &[i64]) -> Result<(), FixtureError> {
        let wanted = self.case.tensor(name)?.integers()?;
        self.same_length(name, got.len(), wanted.len())?;
        let differ = got.iter().zip(wanted).filter(|(got, wanted)| got != wanted).count();
        self.note(name, differ as f64, 0.0);
        Ok(())
    }

    /// Compares ids or counts with the tensor `name`: all must be equal.
    ///
    /// # Errors
    /// [`FixtureError`] if the tensor is missing or has another number of elements.
    pub(crate) fn same(&mut self, name: &str, got: &[u32]) -> Result<(), FixtureError> {
        let got: Vec<i64> = got.iter().map(|value| i64::from(*value)).collect();
        self.exact(name, &got)
    }

    /// Says that nothing the library returns is the tensor `name`, if the file has it; docs/verify.md lists why.
    pub(crate) fn uncompared_if_any(&mut self, name: &str) {
        self.done.insert(name.to_owned());
    }

    /// What came of it, where other ranks compare the rest of the file.
    pub(crate) fn finish_part(self) -> Outcome {
        match self.worst {
            None => Outcome::Failed("the file holds nothing to compare with".to_owned()),
            Some(worst) if worst.passes() => Outcome::Passed(worst),
            Some(worst) => Outcome::Differs(worst),
        }
    }

    /// What came of it.
    pub(crate) fn finish(self) -> Outcome {
        let left: Vec<&str> =
            self.case.names().filter(|name| is_reference(name) && !self.done.contains(*name)).collect();
        if !left.is_empty() {
            return Outcome::Failed(format!("nothing to compare with {}", left.join(", ")));
        }
        self.finish_part()
    }

    fn note(&mut self, name: &str, error: f64, tolerance: f64) {
        self.done.insert(name.to_owned());
        let found = Difference { name: name.to_owned(), error, tolerance };
        if self.worst.as_ref().is_none_or(|worst| found.share() > worst.share()) {
            self.worst = Some(found);
        }
    }

    fn same_length(&self, name: &str, got: usize, wanted: usize) -> Result<(), FixtureError> {
        if got == wanted {
            return Ok(());
        }
        Err(FixtureError::WrongLength { name: name.to_owned(), wanted: got, got: wanted })
    }
}

/// `out.y`, `rank0.grad.x`, `exch.counts`: a reference stands first, or behind the name of a rank.
fn is_reference(name: &str) -> bool {
    name.split('.').take(2).any(|part| REFERENCES.contains(&part))
}
