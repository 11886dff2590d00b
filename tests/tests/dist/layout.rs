//! Layout: whose tokens are where.
//!
//! Each data rank has sequences of its own, cut over cp into parts that follow each other; what a tensor-parallel group has, its ranks share.
//! Tokens are numbered as one process would have them: data rank by data rank, sequence by sequence.

use moe_core::Axis;
use moe_dist::mesh::Mesh;

/// How many tokens there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// some sequences of different lengths on every data rank
    Ragged,
    /// three tokens in all
    Sparse,
    /// one sequence of 16 tokens on every data rank
    Even,
    /// enough that experts have more rows than a tile
    Many,
}

/// Tokens over the ranks of a mesh.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) mesh: Mesh,
    /// by data rank
    sequences: Vec<Vec<usize>>,
    /// tokens come split over tp, not replicated
    pub(crate) sequence_parallel: bool,
    shape: Shape,
}

impl Layout {
    pub(crate) fn new(mesh: Mesh, shape: Shape, sequence_parallel: bool) -> Self {
        let of = |data: usize| match shape {
            Shape::Ragged => vec![(3 * data + 5) % 8 + 1, (5 * data) % 6 + 2],
            Shape::Sparse if data == 0 => vec![3],
            Shape::Sparse => Vec::new(),
            Shape::Even => vec![16],
            Shape::Many => vec![17 + 7 * (data % 3), 9],
        };
        Self { mesh, sequences: (0..mesh.dp()).map(of).collect(), sequence_parallel, shape }
    }

    /// Lengths of all sequences.
    pub(crate) fn all(&self) -> Vec<usize> {
        self.sequences.concat()
    }

    /// Tokens of the step.
    pub(crate) fn total(&self) -> usize {
        self.all().iter().sum()
    }

    /// Most tokens of a tensor-parallel group.
    pub(crate) fn most(&self) -> usize {
        (0..self.mesh.world()).map(|rank| self.group(rank).len()).max().unwrap_or(0)
    }

    fn data(&self, rank: usize) -> (usize, Axis) {
        let at = self.mesh.coordinates(rank).expect("a rank of the mesh");
        (self.mesh.dp_of(&at), Axis { rank: at.cp, size: self.mesh.degrees().cp })
    }

    /// Lengths of the sequences that `rank` sees parts of.
    pub(crate) fn wholes(&self, rank: usize) -> Vec<usize> {
        self.sequences[self.data(rank).0].clone()
    }

    /// Lengths of these parts.
    pub(crate) fn parts(&self, rank: usize) -> Vec<usize> {
        let (data, cp) = self.data(rank);
        self.sequences[data].iter().map(|length| cp.share(*length).len()).collect()
    }

    /// Tokens that the tensor-parallel group of `rank` has together.
    pub(crate) fn group(&self, rank: usize) -> Vec<usize> {
        let (data, cp) = self.data(rank);
        let mut first: usize = self.sequences[..data].iter().flatten().sum();
        let mut tokens = Vec::new();
        for length in &self.sequences[data] {
            tokens.extend(cp.share(*length).map(|token| first + token));
            first += length;
        }
        tokens
    }

    /// With sequence parallelism, tokens of each rank of tp: of very different numbers, or none where all have as many.
    pub(crate) fn split(&self, rank: usize) -> Vec<usize> {
        let (tp, tokens) = (self.mesh.degrees().tp, self.group(rank).len());
        if !self.sequence_parallel || self.shape == Shape::Even {
            return Vec::new();
        }
        let start = |rank: usize| tokens * rank * rank / (tp * tp);
        (0..tp).map(|rank| start(rank + 1) - start(rank)).collect()
    }

    fn tp(&self, rank: usize) -> Axis {
        Axis { rank: rank % self.mesh.degrees().tp, size: self.mesh.degrees().tp }
    }

    /// Tokens that enter and leave on `rank`.
    pub(crate) fn local(&self, rank: usize) -> Vec<usize> {
        if self.sequence_parallel { self.own(rank) } else { self.group(rank) }
    }

    /// Tokens that are routed on `rank`.
    pub(crate) fn routed(&self, rank: usize) -> Vec<usize> {
        if self.mesh.degrees().etp == 1 { self.own(rank) } else { self.group(rank) }
    }

    /// Tokens that no other rank of tp adds losses for.
    fn own(&self, rank: usize) -> Vec<usize> {
        let (tokens, tp, split) = (self.group(rank), self.tp(rank), self.split(rank));
        let range = match &split[..] {
            [] => tp.share(tokens.len()),
            split => {
                let start = split[..tp.rank].iter().sum::<usize>();
                start..start + split[tp.rank]
            }
        };
        tokens[range].to_vec()
    }

    /// The tokens that each routing rank routes, each of them once.
    pub(crate) fn segments(&self) -> Vec<Vec<usize>> {
        let degrees = self.mesh.degrees();
        let splits = degrees.etp == 1;
        let routing = (0..self.mesh.world()).filter(|rank| splits || rank % degrees.tp == 0);
        routing.map(|rank| if splits { self.own(rank) } else { self.group(rank) }).collect()
    }
}
