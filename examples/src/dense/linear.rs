//! Matrix products of the dense parts: `y = x * w^T` with `w` (out, in), and its gradients.

use crate::real::Real;
use ndarray::linalg::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis};

/// Tokens that one task works on. Fixed, so that sums over tokens have the same bits for any number of
/// threads.
const CHUNK: usize = 256;

/// `x` (T, in) times `w` (out, in), transposed.
pub fn forward<R: Real>(x: ArrayView2<'_, R>, w: ArrayView2<'_, R>) -> Array2<R> {
    product(x, w.reversed_axes())
}

/// The gradient of `x`, from that of `y`.
pub fn input_gradient<R: Real>(dy: ArrayView2<'_, R>, w: ArrayView2<'_, R>) -> Array2<R> {
    product(dy, w)
}

/// Adds to `dw` the gradient of `w`: `dy^T * x`.
pub fn weight_gradient<R: Real>(dy: ArrayView2<'_, R>, x: ArrayView2<'_, R>, dw: &mut Array2<R>) {
    let parts: Vec<Array2<R>> = dy
        .axis_chunks_iter(Axis(0), CHUNK)
        .into_par_iter()
        .zip(x.axis_chunks_iter(Axis(0), CHUNK).into_par_iter())
        .map(|(dy, x)| dy.t().dot(&x))
        .collect();
    for part in parts {
        *dw += &part;
    }
}

fn product<R: Real>(a: ArrayView2<'_, R>, b: ArrayView2<'_, R>) -> Array2<R> {
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    c.axis_chunks_iter_mut(Axis(0), CHUNK)
        .into_par_iter()
        .zip(a.axis_chunks_iter(Axis(0), CHUNK).into_par_iter())
        .for_each(|(mut c, a)| general_mat_mul(R::ONE, &a, &b, R::ZERO, &mut c));
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::random;

    #[test]
    fn the_products_are_those_of_the_definition_across_chunk_edges() {
        let (tokens, width, out) = (2 * CHUNK + 3, 5, 7);
        let (x, w, dy) = (random((tokens, width), 1), random((out, width), 2), random((tokens, out), 3));
        let near = |a: &Array2<f64>, b: &Array2<f64>| (a - b).iter().all(|d| d.abs() < 1e-11);
        assert!(near(&forward(x.view(), w.view()), &x.dot(&w.t())));
        assert!(near(&input_gradient(dy.view(), w.view()), &dy.dot(&w)));
        let mut dw = Array2::ones((out, width));
        weight_gradient(dy.view(), x.view(), &mut dw);
        assert!(near(&dw, &(dy.t().dot(&x) + 1.0)));
    }
}
