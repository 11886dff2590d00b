//! Tensors by name, on their way to a checkpoint or from one.

use anyhow::{Result, bail, ensure};
use moe_core::{Elem, StateTensor};
use std::collections::BTreeMap;

/// Tensors by name. Readers take theirs out, so that what is left over is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorMap(BTreeMap<String, StateTensor>);

impl TensorMap {
    /// Adds a tensor.
    pub fn insert(&mut self, tensor: StateTensor) {
        self.0.insert(tensor.name.clone(), tensor);
    }

    /// Adds a tensor with these values.
    pub fn insert_values<E: Elem>(&mut self, name: impl Into<String>, shape: &[usize], values: &[E]) {
        let bytes = bytemuck::cast_slice(values).to_vec();
        self.insert(StateTensor { name: name.into(), shape: shape.to_vec(), dtype: E::DTYPE, bytes });
    }

    /// The values of a tensor, which leaves the map.
    ///
    /// # Errors
    /// If it is missing, or has another shape or type.
    pub fn take_values<E: Elem>(&mut self, name: &str, shape: &[usize]) -> Result<Vec<E>> {
        let Some(tensor) = self.0.remove(name) else { bail!("the tensor {name} is missing") };
        let elements = tensor.bytes.len() / size_of::<E>();
        ensure!(
            tensor.dtype == E::DTYPE && tensor.shape == shape && elements == shape.iter().product::<usize>(),
            "the tensor {name} is {} {:?}, but {} {shape:?} is wanted",
            tensor.dtype,
            tensor.shape,
            E::DTYPE
        );
        Ok(bytemuck::pod_collect_to_vec(&tensor.bytes))
    }

    /// Adds tensors with `prefix` before their names.
    pub fn insert_all(&mut self, prefix: &str, tensors: Vec<StateTensor>) {
        for mut tensor in tensors {
            tensor.name.insert_str(0, prefix);
            self.insert(tensor);
        }
    }

    /// Takes out the tensors whose names start with `prefix`, without it.
    pub fn take_all(&mut self, prefix: &str) -> Vec<StateTensor> {
        let names: Vec<String> = self.0.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        let tensors = names.iter().filter_map(|name| self.0.remove(name));
        tensors.map(|tensor| StateTensor { name: tensor.name[prefix.len()..].to_owned(), ..tensor }).collect()
    }

    /// All tensors in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &StateTensor> {
        self.0.values()
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// With the name of a tensor that nobody took.
    pub fn expect_empty(&self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => bail!("the tensor {name} is none of this model's"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_once() {
        let mut map = TensorMap::default();
        map.insert_values("a", &[2, 1], &[1.5_f32, -2.0]);
        assert_eq!(map.take_values::<f32>("a", &[2, 1]).unwrap(), [1.5, -2.0]);
        let error = map.take_values::<f32>("a", &[2, 1]).unwrap_err().to_string();
        assert_eq!(error, "the tensor a is missing");
    }

    #[test]
    fn another_shape_or_type_is_an_error() {
        let mut map = TensorMap::default();
        map.insert_values("a", &[2], &[1.5_f32, -2.0]);
        assert!(map.clone().take_values::<f32>("a", &[1, 2]).is_err());
        let error = map.take_values::<u32>("a", &[2]).unwrap_err().to_string();
        assert_eq!(error, "the tensor a is f32 [2], but u32 [2] is wanted");
    }

    #[test]
    fn a_prefix_names_a_part() {
        let mut map = TensorMap::default();
        map.insert_values("x.b", &[1], &[7_u32]);
        map.insert_values("y.b", &[1], &[8_u32]);
        let part = map.take_all("x.");
        assert_eq!(part[0].name, "b");
        map.insert_all("z.", part);
        let names: Vec<&str> = map.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["y.b", "z.b"]);
        assert!(map.expect_empty().unwrap_err().to_string().contains("tensor y.b "));
    }
}
