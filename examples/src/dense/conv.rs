//! Causal depthwise convolution: `c[t] = sum over j of k[j] * u[t - j]`, column by column, inside a sequence.

use crate::real::Real;
use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, Axis, Zip};

/// Convolves each sequence of `length` rows of `u` with `kernel` (taps, columns).
pub fn forward<R: Real>(u: ArrayView2<'_, R>, kernel: ArrayView2<'_, R>, length: usize) -> Array2<R> {
    let mut c = Array2::zeros(u.raw_dim());
    c.axis_chunks_iter_mut(Axis(0), length)
        .into_par_iter()
        .zip(u.axis_chunks_iter(Axis(0), length).into_par_iter())
        .for_each(|(mut c, u)| {
            for t in 0..u.nrows() {
                for j in 0..kernel.nrows().min(t + 1) {
                    let mut row = c.row_mut(t);
                    row.zip_mut_with(&(&kernel.row(j) * &u.row(t - j)), |c, &term| *c += term);
                }
            }
        });
    c
}

/// The gradient of `u`. Adds that of the kernel to `dkernel`.
pub fn backward<R: Real>(
    u: ArrayView2<'_, R>,
    kernel: ArrayView2<'_, R>,
    length: usize,
    dc: ArrayView2<'_, R>,
    dkernel: &mut Array2<R>,
) -> Array2<R> {
    let mut du = Array2::zeros(u.raw_dim());
    let parts: Vec<Array2<R>> = du
        .axis_chunks_iter_mut(Axis(0), length)
        .into_par_iter()
        .zip(u.axis_chunks_iter(Axis(0), length).into_par_iter())
        .zip(dc.axis_chunks_iter(Axis(0), length).into_par_iter())
        .map(|((mut du, u), dc)| {
            let mut dkernel = Array2::zeros(kernel.raw_dim());
            for t in 0..u.nrows() {
                for j in 0..kernel.nrows().min(t + 1) {
                    Zip::from(du.row_mut(t - j))
                        .and(dkernel.row_mut(j))
                        .and(kernel.row(j))
                        .and(u.row(t - j))
                        .and(dc.row(t))
                        .for_each(|du, dk, &k, &u, &dc| {
                            *du += k * dc;
                            *dk += u * dc;
                        });
                }
            }
            dkernel
        })
        .collect();
    for part in parts {
        *dkernel += &part;
    }
    du
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::{expect_gradient, random};
    use ndarray::array;

    #[test]
    fn a_sequence_does_not_see_the_one_before_it() {
        let u = array![[1.0], [2.0], [3.0], [4.0]];
        let kernel = array![[1.0], [10.0], [100.0]];
        let c = forward(u.view(), kernel.view(), 2);
        assert_eq!(c, array![[1.0], [12.0], [3.0], [34.0]]);
    }

    #[test]
    fn the_gradients_are_those_of_finite_differences() {
        let (u, kernel, dc) = (random((8, 3), 1), random((3, 3), 2), random((8, 3), 3));
        let loss = |u: &Array2<f64>, kernel: &Array2<f64>| (forward(u.view(), kernel.view(), 4) * &dc).sum();
        let mut dkernel = Array2::zeros((3, 3));
        let du = backward(u.view(), kernel.view(), 4, dc.view(), &mut dkernel);
        expect_gradient("u", &u, &du, |u| loss(u, &kernel));
        expect_gradient("kernel", &kernel, &dkernel, |kernel| loss(&u, kernel));
    }
}
