//! What a layer has to know of a mesh: its place, and the groups that its steps exchange in.

use super::{Coordinates, Degrees, Mesh, Span};
use moe_core::{Axis, Groups, Place};

impl Mesh {
    /// Which part of a layer the rank at these coordinates has, for `MoeConfig::place`.
    pub fn place(&self, at: &Coordinates, sequence_parallel: bool) -> Place {
        let Degrees { tp, ep, etp, .. } = *self.degrees();
        let axis = |size, rank| Axis { size, rank };
        Place { ep: axis(ep, at.ep), tp: axis(tp, at.tp), etp: axis(etp, at.etp), sequence_parallel }
    }

    /// The group along `span` that `rank` is in, made by `make` from its name and members:
    /// `|name, ranks| world.group(&device, name, ranks)`. All ranks must make the same groups in the same order.
    ///
    /// # Errors
    /// What `make` returns.
    pub fn group<C, E>(
        &self,
        span: Span,
        rank: usize,
        make: &mut impl FnMut(&'static str, &[usize]) -> Result<C, E>,
    ) -> Result<C, E> {
        make(span.name(), &self.members(span, rank))
    }

    /// The groups of `rank`'s runner, made as in [`group`](Self::group).
    ///
    /// # Errors
    /// What `make` returns.
    pub fn groups_of<C, E>(
        &self,
        rank: usize,
        make: &mut impl FnMut(&'static str, &[usize]) -> Result<C, E>,
    ) -> Result<Groups<C>, E> {
        let mut group = |span| self.group(span, rank, make);
        Ok(Groups { ep: group(Span::Ep)?, tp: group(Span::Tp)?, cp: group(Span::Cp)?, dp: group(Span::Dp)? })
    }
}
