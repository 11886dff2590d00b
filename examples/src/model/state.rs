//! A model's state: weights, expert bias and optimizer state, by name.

use super::Model;
use super::tensors::TensorMap;
use crate::real::Real;
use anyhow::Result;

/// Before the name of a dense parameter: its running mean of the gradient, of the squared gradient.
const FIRST: &str = "adam.m.";
const SECOND: &str = "adam.v.";

impl<R: Real> Model<R> {
    /// Everything that a resumed run needs, but for the number of the step.
    ///
    /// # Errors
    /// What the device says.
    pub fn state(&mut self) -> Result<TensorMap> {
        let mut tensors = TensorMap::default();
        self.visit(&mut |name, param| {
            tensors.insert_values(name, &param.shape, param.value);
            tensors.insert_values(format!("{FIRST}{name}"), &param.shape, param.first);
            tensors.insert_values(format!("{SECOND}{name}"), &param.shape, param.second);
        });
        self.blocks.state(&mut tensors)?;
        Ok(tensors)
    }

    /// Takes over the state of a model of the same configuration, after `step` updates. Takes its tensors out
    /// of `tensors`.
    ///
    /// # Errors
    /// If a tensor is missing, or has another shape or type. The model is then in no defined state.
    pub fn load_state(&mut self, tensors: &mut TensorMap, step: u64) -> Result<()> {
        let mut result = Ok(());
        self.visit(&mut |name, param| {
            let parts = [("", param.value), (FIRST, param.first), (SECOND, param.second)];
            for (prefix, slice) in parts {
                match tensors.take_values(&format!("{prefix}{name}"), &param.shape) {
                    Ok(values) => slice.copy_from_slice(&values),
                    Err(error) => result = Err(error),
                }
            }
        });
        result?;
        self.step = step;
        self.blocks.load_state(tensors)
    }

    /// Takes over weights and expert bias alone. The optimizer starts anew.
    ///
    /// # Errors
    /// If a tensor is missing, or has another shape or type.
    pub fn load_weights(&mut self, tensors: &mut TensorMap) -> Result<()> {
        let mut result = Ok(());
        self.visit(&mut |name, param| match tensors.take_values(name, &param.shape) {
            Ok(values) => param.value.copy_from_slice(&values),
            Err(error) => result = Err(error),
        });
        result?;
        self.blocks.load_weights(tensors)
    }

    /// The gradients by the names of the weights.
    ///
    /// # Errors
    /// What the device says.
    pub fn gradients(&mut self) -> Result<TensorMap> {
        let mut tensors = TensorMap::default();
        self.visit(&mut |name, param| tensors.insert_values(name, &param.shape, param.grad));
        self.blocks.gradients(&mut tensors)?;
        Ok(tensors)
    }
}
