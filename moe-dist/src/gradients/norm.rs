//! The norm of all gradients, each parameter once, with the same bits on every rank.

use super::rules::RULES;
use crate::mesh::{Coordinates, Mesh};
use moe_core::ops::{SumSquares, SumSquaresArgs, SumSquaresDims};
use moe_core::{
    Accum, Collective, Device, Error, In, MoeDevice, Reduce, Scalar, Session, TENSORS, whole, whole_mut,
};

/// Squares of this rank's gradients, and the sum over all ranks.
pub(crate) struct Norm<D: Device, T: Scalar> {
    /// by tensor
    squares: D::Owned<T::Acc>,
    total: D::Owned<f64>,
    counted: [bool; TENSORS],
}

impl<T: Scalar, D: MoeDevice<T>> Norm<D, T> {
    pub(crate) fn new(
        session: &Session<D>,
        mesh: &Mesh,
        at: &Coordinates,
        sharded: bool,
    ) -> Result<Self, Error<D::Error>> {
        let counted = RULES.map(|rule| rule.counts(mesh, at, sharded));
        Ok(Self { squares: session.alloc(TENSORS)?, total: session.alloc(1)?, counted })
    }

    /// The squares of what this rank counts of a layer, of whose gradients it is given views by tensor.
    pub(crate) fn squares_of(
        &mut self,
        session: &mut Session<D>,
        grads: [Option<In<'_, D, T::Acc>>; TENSORS],
    ) -> Result<f64, Error<D::Error>> {
        let mut there = [false; TENSORS];
        for (at, values) in grads.into_iter().enumerate() {
            let Some(values) = values.filter(|values| self.counted[at] && !values.is_empty()) else {
                continue;
            };
            let dims = SumSquaresDims { len: values.len(), accumulate: false };
            let sum = whole_mut::<D, T::Acc>(&mut self.squares).slice(at..at + 1)?;
            session.run::<SumSquares<T>>(&dims, SumSquaresArgs { values, sum })?;
            there[at] = true;
        }
        let mut squares = [T::Acc::ZERO; TENSORS];
        session.download(whole::<D, T::Acc>(&self.squares), &mut squares)?;
        Ok(squares
            .into_iter()
            .zip(there)
            .filter(|(_, there)| *there)
            .map(|(square, _)| square.to_f64())
            .sum())
    }

    /// The root of the sum over the ranks of `world`.
    pub(crate) fn over<C: Collective<D>>(
        &mut self,
        session: &Session<D>,
        world: &mut C,
        own: f64,
    ) -> Result<f64, Error<D::Error>> {
        session.upload(&[own], whole_mut::<D, f64>(&mut self.total))?;
        world.all_reduce(session.stream(), Reduce::Sum, whole_mut::<D, f64>(&mut self.total))?;
        let mut total = [0.0];
        session.download(whole::<D, f64>(&self.total), &mut total)?;
        Ok(total[0].sqrt())
    }
}

/// What gradients of this norm are multiplied with, so that it is `most` at most; 0 is no limit.
pub fn clip(norm: f64, most: f64) -> f64 {
    if most > 0.0 && norm > most { most / (norm + 1e-6) } else { 1.0 }
}
