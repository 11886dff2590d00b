//! Rows: which tokens of its sequences a rank has, and their way to whole sequences and back.
//!
//! Ranks of cp have parts of the same sequences: rank c, of a sequence of L tokens, `[c * L / cp, (c + 1) * L / cp)`. With sequence
//! parallelism the T tokens that this leaves are split once more, `[t * T / tp, (t + 1) * T / tp)` for rank t of tp.
//!
//! All of the model looks at a token alone, but for the mixing over the past. That takes whole sequences: rows are gathered, every rank mixes
//! all of them, and goes on with its own. Backward each begins with the gradient of its own rows and zeros for the others', so
//! that weights get this rank's part of their gradients, and what others' rows get is summed where they are.

use super::blocks::Shape;
use crate::ranks::Ranks;
use crate::real::Real;
use anyhow::Result;
use moe_core::{Axis, Collective, Host, Reduce, View, ViewMut};
use moe_dist::Group;
use ndarray::{Array2, ArrayView2};

/// The ranks with parts of the same sequences.
#[derive(Debug)]
pub(super) struct Rows {
    /// `None` if this rank has its sequences whole
    group: Option<Group<Host>>,
    /// along cp and along tp, by rank of the group
    places: Vec<[Axis; 2]>,
    me: usize,
}

impl Rows {
    pub(super) fn new(ranks: &Ranks) -> Result<Self> {
        let (degrees, at) = (*ranks.mesh().degrees(), ranks.at());
        let tp = if ranks.sequence_parallel() { degrees.tp } else { 1 };
        // Ranks of tp are neighbours, then those of cp.
        let first = ranks.rank() - at.cp * degrees.tp - if tp > 1 { at.tp } else { 0 };
        let (mut members, mut places) = (Vec::new(), Vec::new());
        for c in 0..degrees.cp {
            for t in 0..tp {
                members.push(first + c * degrees.tp + t);
                places.push([Axis { size: degrees.cp, rank: c }, Axis { size: tp, rank: t }]);
            }
        }
        let me = members.iter().position(|&rank| rank == ranks.rank()).unwrap_or(0);
        let group = if members.len() > 1 { Some(ranks.maker(&Host)("sequences", &members)?) } else { None };
        Ok(Self { group, places, me })
    }

    /// Which of the tokens of whole sequences a rank of the group has.
    fn of(&self, rank: usize, shape: &Shape) -> Vec<usize> {
        let [cp, tp] = self.places[rank];
        let part = cp.share(shape.length);
        let token = |at: usize| at / part.len() * shape.length + part.start + at % part.len();
        tp.share(shape.sequences * part.len()).map(token).collect()
    }

    /// This rank's of the values of all tokens.
    pub(super) fn own<V: Copy>(&self, all: Vec<V>, shape: &Shape) -> Vec<V> {
        if self.group.is_none() {
            return all;
        }
        self.of(self.me, shape).into_iter().map(|token| all[token]).collect()
    }

    /// This rank's of the rows of all tokens.
    pub(super) fn own_rows<R: Real>(&self, all: Array2<R>, shape: &Shape) -> Array2<R> {
        if self.group.is_none() {
            return all;
        }
        all.select(ndarray::Axis(0), &self.of(self.me, shape))
    }

    /// Rows for all tokens: this rank's, and zeros.
    pub(super) fn alone<R: Real>(&self, own: ArrayView2<'_, R>, shape: &Shape) -> Array2<R> {
        if self.group.is_none() {
            return own.to_owned();
        }
        let mut all = Array2::zeros((shape.sequences * shape.length, own.ncols()));
        put(&mut all, &self.of(self.me, shape), own);
        all
    }

    /// The rows of all tokens, from those of each rank.
    pub(super) fn gathered<R: Real>(&mut self, own: ArrayView2<'_, R>, shape: &Shape) -> Result<Array2<R>> {
        let tokens = self.tokens(shape);
        let Some(group) = &mut self.group else { return Ok(own.to_owned()) };
        let width = own.ncols();
        let counts: Vec<_> = tokens.iter().map(|tokens| tokens.len() * width).collect();
        let source: Vec<R> = own.iter().copied().collect();
        let mut target = vec![R::ZERO; counts.iter().sum()];
        group.all_gather(&(), View::of(&source[..]), ViewMut::of(&mut target[..]), &counts)?;
        let rows = Array2::from_shape_vec((shape.sequences * shape.length, width), target)?;
        let mut all = Array2::zeros(rows.raw_dim());
        put(&mut all, &tokens.concat(), rows.view());
        Ok(all)
    }

    /// The sums of this rank's rows over what each rank has for all tokens.
    pub(super) fn summed<R: Real>(&mut self, all: Array2<R>, shape: &Shape) -> Result<Array2<R>> {
        let tokens = self.tokens(shape);
        let Some(group) = &mut self.group else { return Ok(all) };
        let width = all.ncols();
        let counts: Vec<_> = tokens.iter().map(|tokens| tokens.len() * width).collect();
        let source: Vec<R> = all.select(ndarray::Axis(0), &tokens.concat()).iter().copied().collect();
        let mut target = vec![R::ZERO; counts[self.me]];
        group.reduce_scatter(
            &(),
            Reduce::Sum,
            View::of(&source[..]),
            ViewMut::of(&mut target[..]),
            &counts,
        )?;
        Ok(Array2::from_shape_vec((tokens[self.me].len(), width), target)?)
    }

    fn tokens(&self, shape: &Shape) -> Vec<Vec<usize>> {
        (0..self.places.len()).map(|rank| self.of(rank, shape)).collect()
    }
}

/// Row i of `rows` becomes row `places[i]` of `all`.
fn put<R: Real>(all: &mut Array2<R>, places: &[usize], rows: ArrayView2<'_, R>) {
    for (&place, row) in places.iter().zip(rows.rows()) {
        all.row_mut(place).assign(&row);
    }
}
