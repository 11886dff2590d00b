//! The experts' weights of a case, in the library's layout.
//!
//! Files hold `w1` (gate), `w3` (up) and `w2`, or gpt-oss's `mlp1_weight` and `mlp2_weight` with biases. The library has gate and up
//! in one tensor: the gate's rows of an expert, then the up rows. gpt-oss interleaves them: gate in even rows, up in odd ones.

use crate::fixture::{Case, FixtureError, Keys};
use moe_core::Scalar;
use moe_core::ops::Activation;

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
    /// The routed experts of a case. `kind` is the key that says which experts they are.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub(crate) fn of(case: &Case, keys: &Keys<'_>, kind: &str) -> Result<Self, FixtureError> {
        if keys.choice(kind, &[("swiglu", false), ("gpt_oss", true)])? {
            Self::mlp(case, keys)
        } else {
            let [experts, hidden, width] = case.dims("param.w1")?;
            Self::separate(case, "", experts, hidden, width)
        }
    }

    /// The shared expert of a case of this width, as one group.
    ///
    /// # Errors
    /// [`FixtureError`].
    pub(crate) fn shared(case: &Case, hidden: usize, width: usize) -> Result<Self, FixtureError> {
        Self::separate(case, "shared.", 1, hidden, width)
    }

    fn separate(
        case: &Case,
        prefix: &str,
        experts: usize,
        hidden: usize,
        width: usize,
    ) -> Result<Self, FixtureError> {
        // A shared expert has no dimension for experts.
        let dims = |rows, cols| if prefix.is_empty() { vec![experts, rows, cols] } else { vec![rows, cols] };
        let read =
            |name: &str, rows, cols| case.scalars::<T>(&format!("param.{prefix}{name}"), &dims(rows, cols));
        Ok(Self {
            names: Names::Separate,
            activation: Activation::SwiGlu,
            experts,
            width,
            hidden,
            w13: halves_joined(&read("w1", hidden, width)?, &read("w3", hidden, width)?, hidden * width),
            b13: None,
            w2: read("w2", width, hidden)?,
            b2: None,
        })
    }

    fn mlp(case: &Case, keys: &Keys<'_>) -> Result<Self, FixtureError> {
        let [experts, width, hidden] = case.dims("param.mlp2_weight")?;
        let interleaved = keys.flag_or("interleaved", true)?;
        let names = Names::Mlp { interleaved };
        let w13 = case.scalars::<T>("param.mlp1_weight", &[experts, 2 * hidden, width])?;
        let b13 = case.scalars::<T>("param.mlp1_bias", &[experts, 2 * hidden])?;
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
            w2: case.scalars("param.mlp2_weight", &[experts, width, hidden])?,
            b2: Some(case.scalars("param.mlp2_bias", &[experts, width])?),
        })
    }
}

impl Names {
    /// Rows of `columns` elements, in the file's order, as gate rows and then up rows of each expert.
    pub(crate) fn rows_from_file<T: Copy>(self, rows: &[T], hidden: usize, columns: usize) -> Vec<T> {
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
    pub(crate) fn rows_to_file<T: Copy>(self, rows: &[T], hidden: usize, columns: usize) -> Vec<T> {
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
pub(crate) fn halves_split<T: Copy>(joined: &[T], part: usize) -> (Vec<T>, Vec<T>) {
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
