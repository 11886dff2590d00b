//! The parameters of a layer: name, shape, and which part of the whole tensor a rank has.

use super::MoeConfig;
use core::ops::Range;

/// Most tensors of a layer.
pub const TENSORS: usize = 9;

/// Name and shape of a parameter on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// the field's name; those of shared experts start with `shared.`
    pub name: &'static str,
    dims: [usize; 3],
    rank: usize,
    axes: [Stretch; 4],
}

/// Part of an axis of a whole tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    start: usize,
    len: usize,
    whole: usize,
}

impl Stretch {
    const ONE: Self = Self::all(1);

    const fn all(whole: usize) -> Self {
        Self { start: 0, len: whole, whole }
    }

    fn of(range: &Range<usize>, whole: usize) -> Self {
        Self { start: range.start, len: range.len(), whole }
    }

    fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

impl TensorSpec {
    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Where this rank's elements stand in the whole tensor, which is row-major too: stretches, in the order of this rank's elements.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let [a, b, c, d] = self.axes;
        let run = move |i, j, k| {
            let row = ((i * b.whole + j) * c.whole + k) * d.whole;
            row + d.start..row + d.start + d.len
        };
        a.range().flat_map(move |i| b.range().flat_map(move |j| c.range().map(move |k| run(i, j, k))))
    }
}

impl MoeConfig {
    /// Name and shape of every parameter on this rank, in the order that all lists of them have.
    pub fn tensors(&self) -> [Option<TensorSpec>; TENSORS] {
        let part = self.part();
        let halves = self.activation.up_width(1);
        let all_experts = Stretch::all(self.experts);
        let experts = Stretch::of(&part.experts, self.experts);
        let hidden = Stretch::of(&part.hidden, self.hidden);
        let (width, halves) = (Stretch::all(self.width), Stretch::all(halves));
        let shared_hidden = Stretch::of(&part.shared_hidden, self.shared.map_or(0, |shared| shared.hidden));
        let (up, shared_up) = (halves.len * hidden.len, halves.len * shared_hidden.len);
        let spec = |name, shape: &[usize], axes| {
            let mut dims = [1; 3];
            dims[..shape.len()].copy_from_slice(shape);
            Some(TensorSpec { name, dims, rank: shape.len(), axes })
        };
        let one = Stretch::ONE;
        let biased = |spec: Option<TensorSpec>, there: bool| spec.filter(|_| there);
        let (e, d, f, fs) = (experts.len, width.len, hidden.len, shared_hidden.len);
        let (shared, gated) = (self.shared.is_some(), self.shared.is_some_and(|shared| shared.gated));
        [
            spec("gate", &[all_experts.len, d], [all_experts, one, one, width]),
            biased(spec("gate_bias", &[all_experts.len], [all_experts, one, one, one]), self.gate_bias),
            spec("w13", &[e, up, d], [experts, halves, hidden, width]),
            biased(spec("b13", &[e, up], [experts, halves, hidden, one]), self.expert_bias),
            spec("w2", &[e, d, f], [experts, one, width, hidden]),
            biased(spec("b2", &[e, d], [experts, one, width, one]), self.expert_bias),
            biased(spec("shared.w13", &[shared_up, d], [one, halves, shared_hidden, width]), shared),
            biased(spec("shared.w2", &[d, fs], [one, one, width, shared_hidden]), shared),
            biased(spec("shared.gate", &[1, d], [one, one, one, width]), gated),
        ]
    }
}
