//! Cut: how a tensor is cut into shards.
//!
//! Along the first dimension, in pieces of `ceil(rows / shards)` rows: the last may be shorter, or there may be none left for it. Routed experts'
//! tensors are cut between experts unless there are more shards than experts; then along the next dimension, inside each expert.

use moe_core::TensorSpec;
use std::ops::Range;

/// A tensor (outer, rows, inner), cut along its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    outer: usize,
    rows: usize,
    inner: usize,
    shards: usize,
}

impl Cut {
    pub(crate) fn new(spec: &TensorSpec, shards: usize, of_experts: bool) -> Self {
        let shape = spec.shape();
        let inside = of_experts && shards > shape[0] && shape.len() > 1;
        let at = usize::from(inside);
        let product = |dims: &[usize]| dims.iter().product();
        Self { outer: product(&shape[..at]), rows: shape[at], inner: product(&shape[at + 1..]), shards }
    }

    fn rows_of(&self, shard: usize) -> Range<usize> {
        let each = self.rows.div_ceil(self.shards);
        (shard * each).min(self.rows)..((shard + 1) * each).min(self.rows)
    }

    /// Elements of a shard.
    pub(crate) fn len(&self, shard: usize) -> usize {
        self.outer * self.rows_of(shard).len() * self.inner
    }

    /// Whether shards lie in the tensor one after the other.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.outer == 1
    }

    /// The tensor's elements that a shard consists of, in its order.
    pub(crate) fn pieces(&self, shard: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (Self { outer, rows, inner, .. }, own) = (*self, self.rows_of(shard));
        let outer = if own.is_empty() { 0 } else { outer };
        (0..outer).map(move |at| (at * rows + own.start) * inner..(at * rows + own.end) * inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::{MoeConfig, Sizes};

    fn cut(tensor: usize, shards: usize) -> Cut {
        let config =
            MoeConfig::new(Sizes { width: 5, hidden: 3, experts: 4, top_k: 1 }).expect("a good layer");
        Cut::new(&config.tensors()[tensor].expect("a tensor of every layer"), shards, tensor == 2)
    }

    #[test]
    fn shards_are_ceil_sized_and_the_last_may_be_empty() {
        let lengths = |tensor, shards| {
            let cut = cut(tensor, shards);
            (0..shards).map(|shard| cut.len(shard)).collect::<Vec<_>>()
        };
        assert_eq!(lengths(0, 3), [10, 10, 0]); // gate (4, 5)
        assert_eq!(lengths(2, 3), [60, 60, 0]); // w13 (4, 6, 5), between experts
        assert_eq!(lengths(2, 5), [40, 40, 40, 0, 0]); // along the 6 rows of each expert
    }

    #[test]
    fn pieces_of_all_shards_make_up_the_tensor() {
        for tensor in [0, 2, 4] {
            for shards in 1..9 {
                let cut = cut(tensor, shards);
                let mut all: Vec<usize> = (0..shards).flat_map(|shard| cut.pieces(shard).flatten()).collect();
                let lengths = (0..shards).map(|shard| cut.len(shard)).sum::<usize>();
                assert_eq!(lengths, all.len());
                all.sort_unstable();
                assert!(all.into_iter().eq(0..cut.outer * cut.rows * cut.inner), "{tensor} in {shards}");
            }
        }
    }
}
