//! A parameter with its gradient and its optimizer state.

use crate::real::Real;
use crate::rng::Rng;
use moe_core::ops::{AdamW, AdamWArgs, AdamWDims, AdamWSettings};
use moe_core::{Op, ShapeError, View, ViewMut};
use ndarray::{Array, Array1, Array2, Dimension, Ix1, Ix2};

/// A dense parameter.
#[derive(Clone, Debug)]
pub struct Param<R, Dim: Dimension> {
    /// the weights
    pub value: Array<R, Dim>,
    /// gradient of the loss, added up since the last update
    pub grad: Array<R, Dim>,
    first: Array<R, Dim>,
    second: Array<R, Dim>,
}

/// A parameter with one dimension.
pub type Vector<R> = Param<R, Ix1>;
/// A parameter with two dimensions.
pub type Matrix<R> = Param<R, Ix2>;

/// A parameter of any shape, as slices in row-major order.
pub struct Flat<'a, R> {
    /// the lengths of its dimensions
    pub shape: Vec<usize>,
    /// the weights
    pub value: &'a mut [R],
    /// the gradient
    pub grad: &'a mut [R],
    /// running mean of the gradient
    pub first: &'a mut [R],
    /// running mean of the squared gradient
    pub second: &'a mut [R],
}

impl<R: Real, Dim: Dimension> Param<R, Dim> {
    /// A parameter with these weights, and no gradient or optimizer state yet.
    pub fn new(value: Array<R, Dim>) -> Self {
        let value = value.as_standard_layout().into_owned();
        let zeros = || Array::zeros(value.raw_dim());
        Self { grad: zeros(), first: zeros(), second: zeros(), value }
    }

    /// The parameter as slices.
    pub fn flat(&mut self) -> Flat<'_, R> {
        Flat {
            shape: self.value.shape().to_vec(),
            value: slice(&mut self.value),
            grad: slice(&mut self.grad),
            first: slice(&mut self.first),
            second: slice(&mut self.second),
        }
    }
}

fn slice<R, Dim: Dimension>(array: &mut Array<R, Dim>) -> &mut [R] {
    array.as_slice_mut().expect("`new` makes the arrays contiguous")
}

impl<R: Real> Vector<R> {
    /// `len` times the same value.
    pub fn filled(len: usize, value: f64) -> Self {
        Self::new(Array1::from_elem(len, R::of(value)))
    }
}

impl<R: Real> Matrix<R> {
    /// Normally distributed weights with the standard deviation `deviation`.
    pub fn normal(shape: (usize, usize), deviation: f64, rng: &mut Rng) -> Self {
        Self::new(Array2::from_shape_simple_fn(shape, || R::of(deviation * rng.normal())))
    }
}

impl<R: Real> Flat<'_, R> {
    /// One step of AdamW, by the op's definition. The gradient is zero afterwards.
    ///
    /// # Errors
    /// None that the slices of one parameter can cause.
    pub fn adamw(self, settings: &AdamWSettings) -> Result<(), ShapeError> {
        let (dims, words) = (AdamWDims { len: self.value.len() }, settings.words::<R>());
        let args = AdamWArgs {
            settings: View::of(&words),
            grad: View::of(self.grad),
            w: ViewMut::of(self.value),
            master: None,
            m: ViewMut::of(self.first),
            v: ViewMut::of(self.second),
        };
        AdamW::<R>::reference(&dims, args)?;
        self.grad.fill(R::ZERO);
        Ok(())
    }

    /// The sum of the squares of the gradient.
    pub fn grad_squares(&self) -> f64 {
        self.grad.iter().map(|g| g.to_f64() * g.to_f64()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_first_step_moves_against_the_sign_of_the_gradient_by_the_learning_rate() {
        let settings = AdamWSettings {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.5,
            step: 1,
            scale: 1.0,
        };
        let mut param = Vector::<f64>::new(array![1.0, -2.0, 3.0]);
        param.grad = array![4.0, -0.25, 0.0];
        param.flat().adamw(&settings).unwrap();
        let want = array![0.95 - 0.1, -1.9 + 0.1, 2.85];
        assert!((&param.value - &want).iter().all(|d| d.abs() < 1e-7), "{}", param.value);
        assert_eq!(param.grad, array![0.0, 0.0, 0.0]);
    }
}
