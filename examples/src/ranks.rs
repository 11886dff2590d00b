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
}

impl Ranks {
    /// The only rank.
    ///
    /// # Errors
    /// None: a world of one rank is always a mesh.
    pub fn alone() -> Result<Self> {
        let world = channel::world(1).pop().context("a world of one has one rank")?;
        Self::new(world, Degrees::default())
    }

    /// A rank of a world that is divided by these degrees.
    ///
    /// # Errors
    /// If the degrees do not fit the world.
    pub fn new(world: World, degrees: Degrees) -> Result<Self> {
        let mesh = Mesh::new(world.size(), degrees)?;
        let at = mesh.seat(world.rank())?;
        Ok(Self { world, mesh, at })
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

    /// This rank's share of the sequences of a batch; the ranks of tp have the same.
    pub fn share(&self, sequences: usize) -> Range<usize> {
        let size = self.mesh.dp() * self.mesh.degrees().cp;
        Axis { size, rank: self.mesh.place_in(Span::Data, &self.at) }.share(sequences)
    }

    /// Most sequences that a rank's share of a batch can have.
    pub fn most(&self, sequences: usize) -> usize {
        sequences.div_ceil(self.mesh.dp() * self.mesh.degrees().cp)
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
