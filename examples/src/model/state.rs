//! A model's state: weights, expert bias and optimizer state, by name.

use super::Model;
use super::tensors::TensorMap;
use crate::dense::param::Flat;
use crate::real::Real;
use anyhow::Result;
use moe_core::StateTensor;
use moe_dist::checkpoint::{Checkpoint, Piece};

/// Before the name of a dense parameter: its running mean of the gradient, of the squared gradient.
const FIRST: &str = "adam.m.";
const SECOND: &str = "adam.v.";

impl<R: Real> Model<R> {
    /// What this rank keeps of all that a resumed run needs, but for the number of the step.
    ///
    /// # Errors
    /// What the device says.
    pub fn pieces(&mut self) -> Result<Vec<Piece>> {
        let mut pieces = self.blocks.pieces()?;
        // The dense parts are equal on all ranks.
        if self.sums.is_first() {
            self.visit(&mut |name, param| {
                let Flat { shape, value, first, second, .. } = param;
                for (prefix, values) in [("", value), (FIRST, first), (SECOND, second)] {
                    let (name, bytes) = (format!("{prefix}{name}"), bytemuck::cast_slice(values).to_vec());
                    let (shape, dtype) = (shape.clone(), R::DTYPE);
                    pieces.push(Piece::whole(StateTensor { name, shape, dtype, bytes }));
                }
            });
        }
        Ok(pieces)
    }

    /// Takes over a checkpoint of a model of the same configuration, after `step` updates, whichever ranks wrote it.
    ///
    /// # Errors
    /// If a tensor is missing, or has another shape or type. The model is then in no defined state.
    pub fn load(&mut self, checkpoint: &mut Checkpoint, step: u64) -> Result<()> {
        let mut result = Ok(());
        self.visit(&mut |name, param| {
            let len = param.value.len();
            let parts = [("", param.value), (FIRST, param.first), (SECOND, param.second)];
            for (prefix, slice) in parts {
                let name = format!("{prefix}{name}");
                match checkpoint.read(&name, R::DTYPE, &param.shape, std::iter::once(0..len)) {
                    Ok(bytes) => slice.copy_from_slice(&bytemuck::pod_collect_to_vec::<u8, R>(&bytes)),
                    Err(error) => result = Err(error),
                }
            }
        });
        result?;
        self.step = step;
        self.blocks.load(checkpoint)
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
