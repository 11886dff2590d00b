//! This process among the ranks that train a model together; often the only one.

use anyhow::{Context, Result};
use moe_core::{Axis, Device};
use moe_dist::mesh::{Coordinates, Degrees, Mesh, Span};
use moe_dist::{Group, World, channel};
use std::ops::Range;

/// A rank, and the mesh of all ranks.
#[derive(Debug)]
pub struct Ranks {
    world: World,
    mesh: Mesh,
    at: Coordinates,
    sequence_parallel: bool,
}

impl Ranks {
    /// The only rank.
    ///
    /// # Errors
    /// None: a world of one rank is always a mesh.
    pub fn alone() -> Result<Self> {
        let world = channel::world(1).pop().context("a world of one has one rank")?;
        Self::new(world, Degrees::default(), false)
    }

    /// A rank of a world that is divided by these degrees; with `sequence_parallel` the ranks of tp have different tokens.
    ///
    /// # Errors
    /// If the degrees do not fit the world.
    pub fn new(world: World, degrees: Degrees, sequence_parallel: bool) -> Result<Self> {
        let mesh = Mesh::new(world.size(), degrees)?;
        let at = mesh.seat(world.rank())?;
        Ok(Self { world, mesh, at, sequence_parallel })
    }

    /// Number of this rank.
    pub fn rank(&self) -> usize {
        self.world.rank()
    }

    /// Whether this rank prints, and keeps what is equal on all.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// All ranks.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// This one's place.
    pub fn at(&self) -> &Coordinates {
        &self.at
    }

    /// Whether the ranks of tp have different tokens.
    pub fn sequence_parallel(&self) -> bool {
        self.sequence_parallel
    }

    /// The ranks that have different tokens.
    pub fn tokens(&self) -> Span {
        if self.sequence_parallel { Span::World } else { Span::Data }
    }

    /// This rank's share of the sequences of a batch; the ranks of cp and tp have the same.
    pub fn share(&self, sequences: usize) -> Range<usize> {
        Axis { size: self.mesh.dp(), rank: self.mesh.dp_of(&self.at) }.share(sequences)
    }

    /// Most sequences that a rank's share of a batch can have.
    pub fn most(&self, sequences: usize) -> usize {
        sequences.div_ceil(self.mesh.dp())
    }

    /// This rank's part of a sequence of `length` tokens; the ranks of tp have the same.
    pub fn part(&self, length: usize) -> Range<usize> {
        Axis { size: self.mesh.degrees().cp, rank: self.at.cp }.share(length)
    }

    /// Longest part of a sequence that a rank can have.
    pub fn longest(&self, length: usize) -> usize {
        length.div_ceil(self.mesh.degrees().cp)
    }

    /// The group along a span.
    ///
    /// # Errors
    /// None for a span of the mesh.
    pub fn group<D: Device>(&self, device: &D, span: Span) -> Result<Group<D>> {
        Ok(self.mesh.group(span, self.rank(), &mut self.maker(device))?)
    }

    /// Makes groups of this world, as the library's constructors ask for.
    pub fn maker<D: Device>(
        &self,
        device: &D,
    ) -> impl FnMut(&'static str, &[usize]) -> Result<Group<D>, moe_core::ConfigError> {
        move |name, ranks| self.world.group(device, name, ranks)
    }
}
