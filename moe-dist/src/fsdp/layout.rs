//! Layout: where the shards of a layer's tensors lie in one buffer, and which of them travel together.
//!
//! A rank's shards stand one after the other: gates, shared experts, routed experts. So an optimizer step is one launch, and
//! each group of copies reduces one stretch. A tensor that is large and whose shards lie in it one after the other travels from
//! and to its own buffer; neighbours that are small or cut inside experts travel together by way of a staging buffer.

use super::cut::Cut;
use crate::gradients::{RULES, SMALL};
use crate::mesh::Span;
use moe_core::{MoeConfig, TENSORS};
use std::ops::Range;

/// Gates, shared experts, routed experts, as places in [`RULES`].
const ORDER: [usize; TENSORS] = [0, 1, 8, 6, 7, 2, 3, 4, 5];

/// Where one rank's shards are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// by tensor; its cut and its shard's place
    pub(crate) tensors: [Option<(Cut, Range<usize>)>; TENSORS],
    pub(crate) packs: Vec<Pack>,
    /// stretches of one group of copies each
    pub(crate) copies: Vec<(Span, Range<usize>)>,
    /// elements of all shards of this rank
    pub(crate) len: usize,
}

/// Tensors that travel together, or one by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pack {
    pub(crate) shards: Span,
    pub(crate) tensors: Vec<usize>,
    pub(crate) staged: bool,
    /// elements by rank of the shards' group
    pub(crate) counts: Vec<usize>,
    /// this rank's elements in the buffer of shards
    pub(crate) own: Range<usize>,
}

impl Layout {
    /// `size_and_rank` of a span's group.
    pub(crate) fn new(config: &MoeConfig, size_and_rank: impl Fn(Span) -> (usize, usize)) -> Self {
        let mut layout =
            Self { tensors: [const { None }; TENSORS], packs: Vec::new(), copies: Vec::new(), len: 0 };
        let specs = config.tensors();
        for at in ORDER {
            let (Some(spec), rule) = (specs[at], RULES[at]) else { continue };
            let (size, rank) = size_and_rank(rule.shards);
            let cut = Cut::new(&spec, size, rule.sum == Span::Edp);
            let own = layout.len..layout.len + cut.len(rank);
            layout.len = own.end;
            match layout.copies.last_mut() {
                Some((span, stretch)) if *span == rule.copies => stretch.end = own.end,
                _ => layout.copies.push((rule.copies, own.clone())),
            }
            let counts = (0..size).map(|shard| cut.len(shard));
            let staged = !cut.is_contiguous() || spec.len() < SMALL;
            match layout.packs.last_mut() {
                Some(pack) if pack.staged && staged && pack.shards == rule.shards => {
                    pack.tensors.push(at);
                    pack.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                    pack.own.end = own.end;
                }
                _ => {
                    let (counts, own) = (counts.collect(), own.clone());
                    layout.packs.push(Pack { shards: rule.shards, tensors: vec![at], staged, counts, own });
                }
            }
            layout.tensors[at] = Some((cut, own));
        }
        layout
    }

    /// Elements of the largest pack that goes by way of the staging buffer.
    pub(crate) fn staging(&self) -> usize {
        let staged = self.packs.iter().filter(|pack| pack.staged);
        staged.map(|pack| pack.counts.iter().sum()).max().unwrap_or(0)
    }

    /// For each element run of a staged pack: tensor, place in the tensor, place in the staging buffer. Rank by rank, tensor by tensor.
    pub(crate) fn moves<'l>(
        &'l self,
        pack: &'l Pack,
    ) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> + 'l {
        let mut end = 0;
        let cuts = move |shard: usize| {
            let tensors = pack.tensors.iter().filter_map(|&at| Some((at, self.tensors[at].as_ref()?.0)));
            tensors.flat_map(move |(at, cut)| cut.pieces(shard).map(move |piece| (at, piece)))
        };
        (0..pack.counts.len()).flat_map(cuts).map(move |(at, piece)| {
            let start = end;
            end += piece.len();
            (at, piece, start..end)
        })
    }
}
