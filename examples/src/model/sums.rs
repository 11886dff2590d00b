//! Sums of the dense parts over the ranks that have other tokens.

use crate::ranks::Ranks;
use crate::real::Real;
use anyhow::Result;
use moe_core::{Collective, Host, Reduce, ViewMut};
use moe_dist::Group;

/// The ranks with other tokens, and all gradients of the dense parts on their way.
#[derive(Debug)]
pub(super) struct Sums<R> {
    data: Option<Group<Host>>,
    first: bool,
    flat: Vec<R>,
    taken: usize,
}

impl<R: Real> Sums<R> {
    pub(super) fn new(ranks: &Ranks) -> Result<Self> {
        let data = ranks.group(&Host, ranks.tokens())?;
        let data = (Collective::<Host>::size(&data) > 1).then_some(data);
        Ok(Self { data, first: ranks.is_first(), flat: Vec::new(), taken: 0 })
    }

    /// Whether this rank is the one that counts and keeps what all have.
    pub(super) fn is_first(&self) -> bool {
        self.first
    }

    /// The sum of a value over the ranks.
    pub(super) fn total(&mut self, value: f64) -> Result<f64> {
        let mut total = [value];
        if let Some(data) = &mut self.data {
            data.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut total))?;
        }
        Ok(total[0])
    }

    /// The value, to be put back: it cannot be used while the model is visited.
    pub(super) fn take(&mut self) -> Self {
        let flat = std::mem::take(&mut self.flat);
        Self { data: self.data.take(), first: self.first, flat, taken: 0 }
    }

    /// Adds a gradient to those that travel; nothing travels where there is one rank.
    pub(super) fn push(&mut self, grad: &[R]) {
        if self.data.is_some() {
            self.flat.extend_from_slice(grad);
        }
    }

    /// Sums what was pushed.
    pub(super) fn reduce(&mut self) -> Result<()> {
        if let Some(data) = &mut self.data {
            data.all_reduce(&(), Reduce::Sum, ViewMut::of(&mut self.flat))?;
        }
        Ok(())
    }

    /// The sums of what was pushed, in the same order.
    pub(super) fn pop(&mut self, grad: &mut [R]) {
        if self.data.is_some() {
            grad.copy_from_slice(&self.flat[self.taken..self.taken + grad.len()]);
            self.taken += grad.len();
            if self.taken == self.flat.len() {
                self.flat.clear();
            }
        }
    }
}
