//! The experts' weights of a case, in the library's layout.
//!
//! Files hold `w1` (gate), `w3` (up) and `w2`, or gpt-oss's `mlp1_weight` and `mlp2_weight` with biases. The library has gate and up
//! in one tensor: the gate's rows of an expert, then the up rows. gpt-oss interleaves them: gate in even rows, up in odd ones.

use crate::fixture::{Case, FixtureError, Keys};
use moe_core::Scalar;
use moe_core::ops::Activation;
use std::ops::Range;

/// Which tensors hold the experts' weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Names {
    /// `w1`, `w3`, `w2`
    Separate,
    /// `mlp1_weight`, `mlp1_bias`, `mlp2_weight`, `mlp2_bias`
    Mlp {
        /// whether gate and up rows alternate
        interleaved: bool,
    },
}

/// Experts in the library's layout.
#[derive(Clone)]
pub(crate) struct Experts<T> {
    /// where the weights came from
    pub(crate) names: Names,
    /// between the products
    pub(crate) activation: Activation,
    /// E
    pub(crate) experts: usize,
    /// D
    pub(crate) width: usize,
    /// F
    pub(crate) hidden: usize,
    /// (experts, 2 hidden, width)
    pub(crate) w13: Vec<T>,
    /// (experts, 2 hidden)
    pub(crate) b13: Option<Vec<T>>,
    /// (experts, width, hidden)
    pub(crate) w2: Vec<T>,
    /// (experts, width)
    pub(crate) b2: Option<Vec<T>>,
}

/// Slope and bound of gpt-oss's activation.
const ALPHA: f64 = 1.702;
const LIMIT: f64 = 7.0;

impl<T: Scalar> Experts<T> {
    /// The routed experts of a case. `kind` is the key that says which experts they are, `prefix` what the names of their
    /// tensors start with.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub(crate) fn of(case: &Case, keys: &Keys<'_>, prefix: &str, kind: &str) -> Result<Self, FixtureError> {
        if keys.choice(kind, &[("swiglu", false), ("gpt_oss", true)])? {
            return Self::mlp(case, keys, prefix);
        }
        let [experts, hidden, width] = case.dims(&format!("{prefix}w1"))?;
        let (up, down) = ([experts, hidden, width], [experts, width, hidden]);
        Self::separate(case, prefix, experts, &up, &down)
    }

    /// The shared expert of a case, as one group.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub(crate) fn shared(
        case: &Case,
        prefix: &str,
        hidden: usize,
        width: usize,
    ) -> Result<Self, FixtureError> {
        Self::separate(case, &format!("{prefix}shared."), 1, &[hidden, width], &[width, hidden])
    }

    /// Experts whose `w1`, `w3` have the shape `up` and whose `w2` has the shape `down`.
    fn separate(
        case: &Case,
        prefix: &str,
        experts: usize,
        up: &[usize],
        down: &[usize],
    ) -> Result<Self, FixtureError> {
        let read = |name: &str, shape| case.scalars::<T>(&format!("{prefix}{name}"), shape);
        let (hidden, width) = (up[up.len() - 2], up[up.len() - 1]);
        Ok(Self {
            names: Names::Separate,
            activation: Activation::SwiGlu,
            experts,
            width,
            hidden,
            w13: halves_joined(&read("w1", up)?, &read("w3", up)?, hidden * width),
            b13: None,
            w2: read("w2", down)?,
            b2: None,
        })
    }

    fn mlp(case: &Case, keys: &Keys<'_>, prefix: &str) -> Result<Self, FixtureError> {
        let name = |name: &str| format!("{prefix}{name}");
        let [experts, width, hidden] = case.dims(&name("mlp2_weight"))?;
        let names = Names::Mlp { interleaved: keys.flag_or("interleaved", true)? };
        let w13 = case.scalars::<T>(&name("mlp1_weight"), &[experts, 2 * hidden, width])?;
        let b13 = case.scalars::<T>(&name("mlp1_bias"), &[experts, 2 * hidden])?;
        Ok(Self {
            names,
            activation: Activation::ClampedSwiGlu {
                alpha: keys.number("alpha", ALPHA)? as f32,
                limit: keys.number("limit", LIMIT)? as f32,
            },
            experts,
            width,
            hidden,
            w13: names.rows_from_file(&w13, hidden, width),
            b13: Some(names.rows_from_file(&b13, hidden, 1)),
            w2: case.scalars(&name("mlp2_weight"), &[experts, width, hidden])?,
            b2: Some(case.scalars(&name("mlp2_bias"), &[experts, width])?),
        })
    }
}

/// Tensors by the names that files have for them.
pub(crate) type Named = Vec<(String, Vec<f32>)>;

impl<T: Scalar<Acc = f32>> Experts<T> {
    /// A part of the hidden width of every expert. The down bias is divided by the number of `parts` that add it.
    pub(crate) fn hidden_part(&self, part: Range<usize>, parts: usize) -> Self {
        let (width, hidden) = (self.width, self.hidden);
        // Rows `part` of the gate half and of the up half of each expert.
        let halves = |rows: &[T], columns: usize| -> Vec<T> {
            let half = rows.chunks_exact((hidden * columns).max(1));
            half.flat_map(|half| &half[part.start * columns..part.end * columns]).copied().collect()
        };
        let share = |bias: &T| T::narrow(bias.widen() / parts as f32);
        let columns = self.w2.chunks_exact(hidden.max(1)).flat_map(|row| &row[part.clone()]);
        Self {
            hidden: part.len(),
            w13: halves(&self.w13, width),
            b13: self.b13.as_ref().map(|b13| halves(b13, 1)),
            w2: columns.copied().collect(),
            b2: self.b2.as_ref().map(|b2| b2.iter().map(share).collect()),
            ..*self
        }
    }
}

impl Names {
    /// Weights or gradients of experts of the sizes of `sizes`, back in the file's layout.
    pub(crate) fn tensors<T>(
        self,
        sizes: &Experts<T>,
        w13: &[f32],
        b13: Option<&[f32]>,
        w2: &[f32],
        b2: Option<&[f32]>,
    ) -> Named {
        let (hidden, width) = (sizes.hidden, sizes.width);
        let mut all = Vec::new();
        let mut add = |name: &str, values: Vec<f32>| all.push((name.to_owned(), values));
        if self == Self::Separate {
            let (w1, w3) = halves_split(w13, hidden * width);
            add("w1", w1);
            add("w3", w3);
            add("w2", w2.to_vec());
            return all;
        }
        add("mlp1_weight", self.rows_to_file(w13, hidden, width));
        add("mlp2_weight", w2.to_vec());
        if let (Some(b13), Some(b2)) = (b13, b2) {
            add("mlp1_bias", self.rows_to_file(b13, hidden, 1));
            add("mlp2_bias", b2.to_vec());
        }
        all
    }

    /// Rows of `columns` elements, in the file's order, as gate rows and then up rows of each expert.
    fn rows_from_file<T: Copy>(self, rows: &[T], hidden: usize, columns: usize) -> Vec<T> {
        self.reordered(
            rows,
            hidden,
            columns,
            |row| {
                if row < hidden { 2 * row } else { 2 * (row - hidden) + 1 }
            },
        )
    }

    /// The opposite of [`rows_from_file`](Names::rows_from_file).
    fn rows_to_file<T: Copy>(self, rows: &[T], hidden: usize, columns: usize) -> Vec<T> {
        self.reordered(rows, hidden, columns, |row| row / 2 + row % 2 * hidden)
    }

    fn reordered<T: Copy>(
        self,
        rows: &[T],
        hidden: usize,
        columns: usize,
        source: impl Fn(usize) -> usize,
    ) -> Vec<T> {
        if self != (Self::Mlp { interleaved: true }) {
            return rows.to_vec();
        }
        let expert = 2 * hidden * columns;
        let mut out = Vec::with_capacity(rows.len());
        for rows in rows.chunks_exact(expert.max(1)) {
            for row in 0..2 * hidden {
                out.extend_from_slice(&rows[source(row) * columns..][..columns]);
            }
        }
        out
    }
}

/// Gate and up parts of `part` elements each, expert by expert.
fn halves_joined<T: Copy>(gate: &[T], up: &[T], part: usize) -> Vec<T> {
    let parts = gate.chunks_exact(part.max(1)).zip(up.chunks_exact(part.max(1)));
    parts.flat_map(|(gate, up)| [gate, up].concat()).collect()
}

/// The gate parts and the up parts, `part` elements each.
fn halves_split<T: Copy>(joined: &[T], part: usize) -> (Vec<T>, Vec<T>) {
    let (mut gate, mut up) = (Vec::new(), Vec::new());
    for pair in joined.chunks_exact((2 * part).max(1)) {
        gate.extend_from_slice(&pair[..part]);
        up.extend_from_slice(&pair[part..]);
    }
    (gate, up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_become_halves_and_return() {
        let names = Names::Mlp { interleaved: true };
        let file = [0, 10, 1, 11, 2, 12, 5, 15, 6, 16, 7, 17];
        let library = names.rows_from_file(&file, 3, 1);
        assert_eq!(library, [0, 1, 2, 10, 11, 12, 5, 6, 7, 15, 16, 17]);
        assert_eq!(names.rows_to_file(&library, 3, 1), file);
    }

    #[test]
    fn halves_join_expert_by_expert_and_split_again() {
        let joined = halves_joined(&[1, 2, 3, 4], &[5, 6, 7, 8], 2);
        assert_eq!(joined, [1, 2, 5, 6, 3, 4, 7, 8]);
        assert_eq!(halves_split(&joined, 2), (vec![1, 2, 3, 4], vec![5, 6, 7, 8]));
    }
}
