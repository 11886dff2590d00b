//! RMS norm: `y = x * w / sqrt(mean(x^2) + epsilon)`, row by row.

use super::param::Vector;
use crate::real::Real;
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// An RMS norm with its weight, one per column.
#[derive(Clone, Debug)]
pub struct RmsNorm<R> {
    /// the weight
    pub weight: Vector<R>,
    epsilon: R,
}

/// What the backward pass of a norm needs.
pub struct SavedNorm<R> {
    x: Array2<R>,
    scale: Array1<R>,
}

impl<R: Real> RmsNorm<R> {
    /// A norm with weights 1.
    pub fn new(width: usize, epsilon: f64) -> Self {
        Self { weight: Vector::filled(width, 1.0), epsilon: R::of(epsilon) }
    }

    /// The normed rows.
    pub fn forward(&self, x: ArrayView2<'_, R>) -> (Array2<R>, SavedNorm<R>) {
        let width = R::of(x.ncols() as f64);
        let scale = x.map_axis(Axis(1), |row| {
            let squares: R = row.iter().map(|&x| x * x).sum();
            R::ONE / (squares / width + self.epsilon).sqrt()
        });
        let y = &x * &scale.view().insert_axis(Axis(1)) * &self.weight.value;
        (y, SavedNorm { x: x.to_owned(), scale })
    }

    /// The gradient of the rows. Adds that of the weight.
    ///
    /// With `g = dy * w` and `s` the row's scale: `dx = s * (g - x * s^2 * mean(g * x))`.
    pub fn backward(&mut self, saved: &SavedNorm<R>, dy: ArrayView2<'_, R>) -> Array2<R> {
        let width = R::of(dy.ncols() as f64);
        let mut dx = Array2::zeros(dy.raw_dim());
        for (t, mut dx) in dx.rows_mut().into_iter().enumerate() {
            let (x, dy, scale) = (saved.x.row(t), dy.row(t), saved.scale[t]);
            let mut product = R::ZERO;
            for d in 0..x.len() {
                self.weight.grad[d] += dy[d] * x[d] * scale;
                dx[d] = dy[d] * self.weight.value[d];
                product += dx[d] * x[d];
            }
            let back = scale * scale * product / width;
            for d in 0..x.len() {
                dx[d] = scale * (dx[d] - x[d] * back);
            }
        }
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::{expect_gradient, random};

    #[test]
    fn rows_have_mean_square_1() {
        let x = random((3, 8), 1) * 5.0;
        let (y, _) = RmsNorm::new(8, 0.0).forward(x.view());
        for row in y.rows() {
            assert!((row.dot(&row) / 8.0 - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn the_gradients_are_those_of_finite_differences() {
        let (x, dy) = (random((3, 5), 1), random((3, 5), 2));
        let mut norm = RmsNorm::new(5, 1e-2);
        norm.weight.value = random(5, 3);
        let loss = |norm: &RmsNorm<f64>, x: &Array2<f64>| (norm.forward(x.view()).0 * &dy).sum();

        let (_, saved) = norm.forward(x.view());
        let dx = norm.backward(&saved, dy.view());
        expect_gradient("x", &x, &dx, |x| loss(&norm, x));
        let fixed = norm.clone();
        expect_gradient("weight", &fixed.weight.value, &fixed.weight.grad, |weight| {
            norm.weight.value.assign(weight);
            loss(&norm, &x)
        });
    }
}
