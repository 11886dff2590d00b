//! Causal mixing over the past of a sequence, so that a token knows more than its own byte.
//!
//! A short causal convolution followed by a gated linear recurrence; per token it costs four small products
//! and no more than a sequence's length in memory:
//!
//! ```text
//! n = rmsnorm(x)         u, g = halves of n * w_in^T       c = causal convolution of u
//! a = sigmoid(c * w_keep^T + b_keep)                       h[t] = a[t] * h[t-1] + (1 - a[t]) * c[t]
//! out = (h * silu(g)) * w_out^T                            x + out is the caller's sum
//! ```

use super::norm::{RmsNorm, SavedNorm};
use super::param::{Flat, Matrix, Vector};
use super::{conv, linear, recurrence};
use crate::real::Real;
use crate::rng::Rng;
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip, s};

/// Rows that the convolution sees: the token and the three before it.
const TAPS: usize = 4;

/// The parameters of one mixing, D the model's width.
#[derive(Clone, Debug)]
pub struct Mixing<R> {
    /// norm of the input
    pub norm: RmsNorm<R>,
    /// (2D, D): convolved half, gate half
    pub w_in: Matrix<R>,
    /// (taps, D)
    pub kernel: Matrix<R>,
    /// (D, D)
    pub w_keep: Matrix<R>,
    /// (D)
    pub b_keep: Vector<R>,
    /// (D, D)
    pub w_out: Matrix<R>,
}

/// What the backward pass needs.
pub struct SavedMixing<R> {
    norm: SavedNorm<R>,
    n: Array2<R>,
    /// u and g side by side
    p: Array2<R>,
    c: Array2<R>,
    a: Array2<R>,
    h: Array2<R>,
    /// h * silu(g)
    z: Array2<R>,
    length: usize,
}

impl<R: Real> Mixing<R> {
    /// Random weights. `out_scale` is for the last product: smaller in deeper models.
    pub fn init(width: usize, epsilon: f64, out_scale: f64, rng: &mut Rng) -> Self {
        let deviation = 1.0 / (width as f64).sqrt();
        let mut kernel = Matrix::normal((TAPS, width), 0.3, rng);
        kernel.value.row_mut(0).map_inplace(|tap| *tap += R::ONE);
        // Columns keep from half of the last state to all but a hundredth: short and long memories.
        let b_keep = Array1::from_shape_fn(width, |d| R::of(4.6 * (d as f64 + 0.5) / width as f64));
        Self {
            norm: RmsNorm::new(width, epsilon),
            w_in: Matrix::normal((2 * width, width), deviation, rng),
            kernel,
            w_keep: Matrix::normal((width, width), 0.5 * deviation, rng),
            b_keep: Vector::new(b_keep),
            w_out: Matrix::normal((width, width), out_scale * deviation, rng),
        }
    }

    /// The term to add to `x`, which holds sequences of `length` rows.
    pub fn forward(&self, x: ArrayView2<'_, R>, length: usize) -> (Array2<R>, SavedMixing<R>) {
        let width = x.ncols();
        let (n, norm) = self.norm.forward(x);
        let p = linear::forward(n.view(), self.w_in.value.view());
        let (u, g) = p.view().split_at(Axis(1), width);
        let c = conv::forward(u, self.kernel.value.view(), length);
        let mut a = linear::forward(c.view(), self.w_keep.value.view());
        a += &self.b_keep.value;
        a.par_map_inplace(|a| *a = a.sigmoid());
        let h = recurrence::forward(a.view(), c.view(), length);
        let mut z = h.clone();
        Zip::from(&mut z).and(g).par_for_each(|z, &g| *z *= g * g.sigmoid());
        let out = linear::forward(z.view(), self.w_out.value.view());
        (out, SavedMixing { norm, n, p, c, a, h, z, length })
    }

    /// The gradient of `x` through the term. Adds the gradients of the weights.
    pub fn backward(&mut self, saved: &SavedMixing<R>, dout: ArrayView2<'_, R>) -> Array2<R> {
        let SavedMixing { norm, n, p, c, a, h, z, length } = saved;
        let (u, g) = p.view().split_at(Axis(1), dout.ncols());
        linear::weight_gradient(dout, z.view(), &mut self.w_out.grad);
        let dz = linear::input_gradient(dout, self.w_out.value.view());

        let (mut dh, mut dg) = (dz.clone(), dz);
        Zip::from(&mut dh).and(&mut dg).and(g).and(h).par_for_each(|dh, dg, &g, &h| {
            let s = g.sigmoid();
            *dh *= g * s;
            *dg *= h * s * (R::ONE + g * (R::ONE - s));
        });
        let (mut dkeep, mut dc) = recurrence::backward(a.view(), c.view(), h.view(), *length, dh.view());
        Zip::from(&mut dkeep).and(a).par_for_each(|da, &a| *da *= a * (R::ONE - a));
        self.b_keep.grad += &dkeep.sum_axis(Axis(0));
        linear::weight_gradient(dkeep.view(), c.view(), &mut self.w_keep.grad);
        dc += &linear::input_gradient(dkeep.view(), self.w_keep.value.view());

        let du = conv::backward(u, self.kernel.value.view(), *length, dc.view(), &mut self.kernel.grad);
        let mut dp = Array2::zeros(p.raw_dim());
        dp.slice_mut(s![.., ..du.ncols()]).assign(&du);
        dp.slice_mut(s![.., du.ncols()..]).assign(&dg);
        linear::weight_gradient(dp.view(), n.view(), &mut self.w_in.grad);
        let dn = linear::input_gradient(dp.view(), self.w_in.value.view());
        self.norm.backward(norm, dn.view())
    }

    /// Calls `f` with the name and the slices of every parameter.
    pub fn visit(&mut self, f: &mut dyn FnMut(&str, Flat<'_, R>)) {
        f("norm.weight", self.norm.weight.flat());
        f("in.weight", self.w_in.flat());
        f("conv.weight", self.kernel.flat());
        f("keep.weight", self.w_keep.flat());
        f("keep.bias", self.b_keep.flat());
        f("out.weight", self.w_out.flat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::check::{expect_gradient, random};

    const LENGTH: usize = 6;
    const WIDTH: usize = 4;

    fn mixing() -> Mixing<f64> {
        Mixing::init(WIDTH, 1e-5, 1.0, &mut Rng::new(1, 0))
    }

    #[test]
    fn a_token_sees_the_past_of_its_sequence_and_nothing_else() {
        let (mixing, x) = (mixing(), random((2 * LENGTH, WIDTH), 2));
        let (before, _) = mixing.forward(x.view(), LENGTH);
        let changed_row = LENGTH + 2;
        let mut x = x;
        x[[changed_row, 1]] += 1.0;
        let (after, _) = mixing.forward(x.view(), LENGTH);
        let differs: Vec<bool> = (0..2 * LENGTH).map(|t| before.row(t) != after.row(t)).collect();
        let wanted: Vec<bool> = (0..2 * LENGTH).map(|t| t >= changed_row).collect();
        assert_eq!(differs, wanted);
    }

    #[test]
    fn the_gradients_are_those_of_finite_differences() {
        let (x, dout) = (random((2 * LENGTH, WIDTH), 2), random((2 * LENGTH, WIDTH), 3));
        let mut mixing = mixing();
        let loss = |mixing: &Mixing<f64>, x: &Array2<f64>| (mixing.forward(x.view(), LENGTH).0 * &dout).sum();

        let (_, saved) = mixing.forward(x.view(), LENGTH);
        let dx = mixing.backward(&saved, dout.view());
        expect_gradient("x", &x, &dx, |x| loss(&mixing, x));

        let mut params = Vec::new();
        mixing.visit(&mut |name, param| {
            params.push((
                name.to_owned(),
                Array1::from(param.value.to_vec()),
                Array1::from(param.grad.to_vec()),
            ));
        });
        assert_eq!(params.len(), 6);
        for (wanted, value, grad) in params {
            expect_gradient(&wanted, &value, &grad, |moved| {
                mixing.visit(&mut |name, param| {
                    if name == wanted {
                        param.value.copy_from_slice(&moved.to_vec());
                    }
                });
                loss(&mixing, &x)
            });
        }
    }
}
