//! Spans: along what a group of ranks extends, and who its members are.

use super::{Coordinates, Degrees, Mesh};

/// What the members of a group differ in. All else they have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Span {
    /// everything: one group
    World,
    /// copies of a replica's shards
    DpReplicate,
    /// shards, one per part of the batch
    DpShard,
    /// parts of the batch
    Dp,
    /// parts of sequences
    Cp,
    /// parts of the hidden width
    Tp,
    /// tokens: dp and cp together
    Data,
    /// shards of the dense parameters: dp_shard and cp together
    Fsdp,
    /// copies of a shard of a parameter that is whole on each rank of tp: dp_replicate and tp together
    ReplicateTp,
    /// parts of the experts
    Ep,
    /// parts of an expert's hidden width
    Etp,
    /// copies of an expert's part, with different tokens
    Edp,
    /// shards of an expert's part
    Efsdp,
}

impl Span {
    /// All spans.
    pub const ALL: [Self; 13] = [
        Self::World,
        Self::DpReplicate,
        Self::DpShard,
        Self::Dp,
        Self::Cp,
        Self::Tp,
        Self::Data,
        Self::Fsdp,
        Self::ReplicateTp,
        Self::Ep,
        Self::Etp,
        Self::Edp,
        Self::Efsdp,
    ];

    /// As it stands in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::DpReplicate => "dp_replicate",
            Self::DpShard => "dp_shard",
            Self::Dp => "dp",
            Self::Cp => "cp",
            Self::Tp => "tp",
            Self::Data => "data",
            Self::Fsdp => "fsdp",
            Self::ReplicateTp => "dp_replicate_tp",
            Self::Ep => "ep",
            Self::Etp => "etp",
            Self::Edp => "edp",
            Self::Efsdp => "efsdp",
        }
    }

    /// What the members of a group have in common.
    fn common(self, at: &Coordinates) -> [usize; 3] {
        let Coordinates { dp_replicate: r, dp_shard: s, cp: c, tp: t, efsdp: f, ep: p, etp: h } = *at;
        match self {
            Self::World => [0, 0, 0],
            Self::DpReplicate => [s, c, t],
            Self::DpShard => [r, c, t],
            Self::Dp => [c, t, 0],
            Self::Cp => [r, s, t],
            Self::Tp => [r, s, c],
            Self::Data => [t, 0, 0],
            Self::Fsdp => [r, t, 0],
            Self::ReplicateTp => [s, c, 0],
            Self::Ep => [r, f, h],
            Self::Etp => [r, f, p],
            Self::Edp => [p, h, 0],
            Self::Efsdp => [r, p, h],
        }
    }
}

impl Mesh {
    /// A rank's place in its group along `span`, from 0.
    pub fn place_in(&self, span: Span, at: &Coordinates) -> usize {
        let Degrees { cp, tp, .. } = *self.degrees();
        match span {
            Span::World => (self.dp_of(at) * cp + at.cp) * tp + at.tp,
            Span::DpReplicate => at.dp_replicate,
            Span::DpShard => at.dp_shard,
            Span::Dp => self.dp_of(at),
            Span::Cp => at.cp,
            Span::Tp => at.tp,
            Span::Data => self.dp_of(at) * cp + at.cp,
            Span::Fsdp => at.dp_shard * cp + at.cp,
            Span::ReplicateTp => at.dp_replicate * tp + at.tp,
            Span::Ep => at.ep,
            Span::Etp => at.etp,
            Span::Edp => self.edp_of(at),
            Span::Efsdp => at.efsdp,
        }
    }

    /// The ranks of the group along `span` that `rank` is in, in ascending order; empty if the world has no such rank.
    pub fn members(&self, span: Span, rank: usize) -> Vec<usize> {
        let common = |rank| self.coordinates(rank).map(|at| span.common(&at));
        let own = common(rank);
        (0..self.world()).filter(|&other| own.is_some() && common(other) == own).collect()
    }

    /// All groups along `span`, in the order of their first ranks.
    pub fn groups(&self, span: Span) -> Vec<Vec<usize>> {
        let groups = (0..self.world()).map(|rank| (rank, self.members(span, rank)));
        groups.filter(|(rank, members)| members.first() == Some(rank)).map(|(_, members)| members).collect()
    }
}
