//! Gated linear recurrence: `h[t] = a[t] * h[t - 1] + (1 - a[t]) * c[t]`, column by column, `h` = 0 before a
//! sequence. `a` in (0, 1) says how much of the past is kept.

use crate::real::Real;
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

/// The states `h` of each sequence of `length` rows.
pub fn forward<R: Real>(a: ArrayView2<'_, R>, c: ArrayView2<'_, R>, length: usize) -> Array2<R> {
    let mut h = Array2::zeros(a.raw_dim());
    h.axis_chunks_iter_mut(Axis(0), length)
        .into_par_iter()
        .zip(a.axis_chunks_iter(Axis(0), length).into_par_iter())
        .zip(c.axis_chunks_iter(Axis(0), length).into_par_iter())
        .for_each(|((mut h, a), c)| {
            let mut state = Array1::zeros(a.ncols());
            for t in 0..a.nrows() {
                Zip::from(&mut state).and(h.row_mut(t)).and(a.row(t)).and(c.row(t)).for_each(
                    |state, h, &a, &c| {
                        *state = a * *state + (R::ONE - a) * c;
                        *h = *state;
                    },
                );
            }
        });
    h
}

/// The gradients of `a` and `c`, from that of `h`.
pub fn backward<R: Real>(
    a: ArrayView2<'_, R>,
    c: ArrayView2<'_, R>,
    h: ArrayView2<'_, R>,
    length: usize,
    dh: ArrayView2<'_, R>,
) -> (Array2<R>, Array2<R>) {
    let (mut da, mut dc) = (Array2::zeros(a.raw_dim()), Array2::zeros(a.raw_dim()));
    da.axis_chunks_iter_mut(Axis(0), length)
        .into_par_iter()
        .zip(dc.axis_chunks_iter_mut(Axis(0), length).into_par_iter())
        .enumerate()
        .for_each(|(sequence, (mut da, mut dc))| {
            let start = sequence * length;
            // What the later rows of the sequence ask of this row's state.
            let mut later = Array1::zeros(a.ncols());
            for t in (0..da.nrows()).rev() {
                for column in 0..a.ncols() {
                    let at = [start + t, column];
                    let before = if t > 0 { h[[start + t - 1, column]] } else { R::ZERO };
                    let total = dh[at] + later[column];
                    da[[t, column]] = total * (before - c[at]);
                    dc[[t, column]] = total * (R::ONE - a[at]);
                    later[column] = total * a[at];
                }
            }
        });
    (da, dc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::{expect_gradient, random};
    use ndarray::array;

    #[test]
    fn the_state_is_a_mean_of_the_past_of_its_own_sequence() {
        let a = array![[0.5], [0.25], [0.5], [0.0]];
        let c = array![[4.0], [8.0], [2.0], [3.0]];
        assert_eq!(forward(a.view(), c.view(), 2), array![[2.0], [6.5], [1.0], [3.0]]);
    }

    #[test]
    fn the_gradients_are_those_of_finite_differences() {
        let (a, c, dh) = (random((6, 2), 1), random((6, 2), 2), random((6, 2), 3));
        let loss = |a: &Array2<f64>, c: &Array2<f64>| (forward(a.view(), c.view(), 3) * &dh).sum();
        let h = forward(a.view(), c.view(), 3);
        let (da, dc) = backward(a.view(), c.view(), h.view(), 3, dh.view());
        expect_gradient("a", &a, &da, |a| loss(a, &c));
        expect_gradient("c", &c, &dc, |c| loss(&a, c));
    }
}
