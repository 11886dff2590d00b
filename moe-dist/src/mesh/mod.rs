//! Mesh: how the ranks of a world share the work, as degrees along axes.
//!
//! Dense parts of a model see the axes dp_replicate, dp_shard, cp and tp, the experts see the same ranks as edp, ep and etp:
//!
//! ```text
//! rank = ((r * dp_shard + s) * cp + c) * tp + t          r < dp_replicate
//!      = ((r * efsdp + f) * ep + p) * etp + h            efsdp = dp_shard * cp * tp / (ep * etp),  edp = dp_replicate * efsdp
//! ```
//!
//! Neighbours along tp, and then along etp and ep, are neighbours in the world, so that the busiest groups are on one host.

mod coordinates;
mod place;
mod rules;
mod span;

pub use coordinates::Coordinates;
pub use rules::MeshError;
pub use span::Span;

/// Ranks along each span of a mesh. Start from the default, which is 1 everywhere, and set fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Degrees {
    /// replicas of all that dp_shard holds: data parallel, and parameters are whole copies of each other's shards (HSDP)
    pub dp_replicate: usize,
    /// data parallel, with parameters sharded if they are sharded at all (FSDP)
    pub dp_shard: usize,
    /// context parallel: parts of the same sequences
    pub cp: usize,
    /// tensor parallel: the same tokens, parts of the hidden width of shared experts
    pub tp: usize,
    /// expert parallel: parts of the routed experts
    pub ep: usize,
    /// tensor parallel inside a routed expert: 1 or tp
    pub etp: usize,
}

impl Default for Degrees {
    fn default() -> Self {
        Self { dp_replicate: 1, dp_shard: 1, cp: 1, tp: 1, ep: 1, etp: 1 }
    }
}

/// Degrees that fit a world. Made by [`Mesh::new`], so that what takes a mesh need not check it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mesh {
    degrees: Degrees,
}

impl Mesh {
    /// The mesh of a world of `world` ranks.
    ///
    /// # Errors
    /// [`MeshError`], which names the degrees that clash.
    pub fn new(world: usize, degrees: Degrees) -> Result<Self, MeshError> {
        rules::check(world, &degrees)?;
        Ok(Self { degrees })
    }

    /// Every mesh that `world` ranks can form.
    pub fn all(world: usize) -> Vec<Self> {
        let divisors: Vec<usize> = (1..=world).filter(|degree| world.is_multiple_of(*degree)).collect();
        let mut all = vec![Degrees::default()];
        let fields: [fn(&mut Degrees) -> &mut usize; 5] =
            [|d| &mut d.dp_replicate, |d| &mut d.dp_shard, |d| &mut d.cp, |d| &mut d.tp, |d| &mut d.ep];
        for field in fields {
            let with = |degrees: &Degrees, degree: usize| {
                let mut degrees = *degrees;
                *field(&mut degrees) = degree;
                degrees
            };
            all =
                all.iter().flat_map(|degrees| divisors.iter().map(|degree| with(degrees, *degree))).collect();
        }
        let with_etp = |degrees: Degrees| {
            let whole = (degrees.tp > 1).then_some(Degrees { etp: degrees.tp, ..degrees });
            [Some(degrees), whole].into_iter().flatten()
        };
        all.into_iter().flat_map(with_etp).filter_map(|degrees| Self::new(world, degrees).ok()).collect()
    }

    /// The degrees that it was made from.
    pub fn degrees(&self) -> &Degrees {
        &self.degrees
    }

    /// Ranks.
    pub fn world(&self) -> usize {
        let Degrees { dp_replicate, dp_shard, cp, tp, .. } = self.degrees;
        dp_replicate * dp_shard * cp * tp
    }

    /// Shards that a routed expert's parameters can be cut into: the ranks of a replica that hold the same experts.
    pub fn efsdp(&self) -> usize {
        let Degrees { dp_shard, cp, tp, ep, etp, .. } = self.degrees;
        dp_shard * cp * tp / (ep * etp)
    }

    /// Ranks that hold the same part of the same experts.
    pub fn edp(&self) -> usize {
        self.degrees.dp_replicate * self.efsdp()
    }

    /// Ranks with other tokens than each other's, before tp: dp_replicate * dp_shard.
    pub fn dp(&self) -> usize {
        self.degrees.dp_replicate * self.degrees.dp_shard
    }
}
