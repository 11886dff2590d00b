//! State: a layer's tensors by name, for saving, loading and moving between devices.

use super::MoeLayer;
use crate::config::MoeConfig;
use crate::device::Device;
use crate::error::Error;
use crate::ops::MoeDevice;
use crate::scalar::{DType, Elem, Scalar};
use crate::session::Session;
use crate::view::{whole, whole_mut};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Name of the selection bias among a layer's tensors.
pub(crate) const SELECTION_BIAS: &str = "selection_bias";

/// A tensor's name, shape, type and bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// the parameter's name
    pub name: String,
    /// row-major
    pub shape: Vec<usize>,
    /// element type
    pub dtype: DType,
    /// the elements, in the byte order of the machine
    pub bytes: Vec<u8>,
}

impl StateTensor {
    /// Reads a buffer from the device.
    pub(crate) fn read<E: Elem, D: Device>(
        session: &Session<D>,
        name: String,
        shape: &[usize],
        buffer: &D::Owned<E>,
    ) -> Result<Self, Error<D::Error>> {
        let view = whole::<D, E>(buffer);
        let mut values = vec![E::default(); view.len()];
        session.download(view, &mut values)?;
        let bytes = bytemuck::cast_slice(&values).to_vec();
        Ok(Self { name, shape: shape.to_vec(), dtype: E::DTYPE, bytes })
    }

    /// Writes the bytes to a buffer of that shape on the device.
    pub(crate) fn write<E: Elem, D: Device>(
        &self,
        session: &Session<D>,
        shape: &[usize],
        buffer: &mut D::Owned<E>,
    ) -> Result<(), Error<D::Error>> {
        let wrong = |problem| Error::Checkpoint { name: self.name.clone(), problem };
        if self.dtype != E::DTYPE || self.shape != shape {
            let (got, dtype) = (&self.shape, self.dtype);
            return Err(wrong(format!("wanted {} {shape:?}, got {dtype} {got:?}", E::DTYPE)));
        }
        let want = shape.iter().product::<usize>() * size_of::<E>();
        if self.bytes.len() != want {
            return Err(wrong(format!("wanted {want} bytes, got {}", self.bytes.len())));
        }
        let values: Vec<E> = bytemuck::pod_collect_to_vec(&self.bytes);
        session.upload(&values, whole_mut::<D, E>(buffer))
    }
}

/// The tensor of that name, taken out of the list.
pub(crate) fn take<B: crate::BackendError>(
    tensors: &mut Vec<StateTensor>,
    name: &str,
) -> Result<StateTensor, Error<B>> {
    match tensors.iter().position(|tensor| tensor.name == name) {
        Some(at) => Ok(tensors.swap_remove(at)),
        None => Err(Error::Checkpoint { name: name.to_owned(), problem: "is missing".to_owned() }),
    }
}

/// Nothing may be left over.
pub(crate) fn none_left<B: crate::BackendError>(tensors: &[StateTensor]) -> Result<(), Error<B>> {
    match tensors.first() {
        None => Ok(()),
        Some(surplus) => {
            let problem = "is no tensor of this configuration, or is there twice".to_owned();
            Err(Error::Checkpoint { name: surplus.name.clone(), problem })
        }
    }
}

impl<T: Scalar, D: MoeDevice<T>> MoeLayer<D, T> {
    /// Every parameter and the selection bias.
    ///
    /// # Errors
    /// [`Error::Device`]; [`Error::State`] after [`into_inference`](Self::into_inference).
    pub fn state(&self) -> Result<Vec<StateTensor>, Error<D::Error>> {
        self.for_training()?;
        let mut all = Vec::new();
        for (spec, buffer) in self.config.tensors().iter().zip(self.weights.list()) {
            if let (Some(spec), Some(buffer)) = (spec, buffer) {
                all.push(StateTensor::read::<T, D>(
                    &self.session,
                    spec.name.to_owned(),
                    spec.shape(),
                    buffer,
                )?);
            }
        }
        if let Some(bias) = &self.selection_bias {
            let (name, shape) = (SELECTION_BIAS.to_owned(), [self.config.experts]);
            all.push(StateTensor::read::<T::Acc, D>(&self.session, name, &shape, bias)?);
        }
        Ok(all)
    }

    /// A layer from its tensors, in any order: loading, and moving from another device.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a tensor is missing, surplus, or of another shape or type; [`Error::Config`];
    /// [`Error::Device`].
    pub fn from_state(
        device: &D,
        config: &MoeConfig,
        tensors: impl IntoIterator<Item = StateTensor>,
    ) -> Result<Self, Error<D::Error>> {
        let mut layer = Self::zeroed(device, config)?;
        let mut tensors: Vec<StateTensor> = tensors.into_iter().collect();
        for (spec, buffer) in config.tensors().iter().zip(layer.weights.list_mut()) {
            if let (Some(spec), Some(buffer)) = (spec, buffer) {
                take(&mut tensors, spec.name)?.write::<T, D>(&layer.session, spec.shape(), buffer)?;
            }
        }
        if let Some(bias) = &mut layer.selection_bias {
            let tensor = take(&mut tensors, SELECTION_BIAS)?;
            tensor.write::<T::Acc, D>(&layer.session, &[config.experts], bias)?;
        }
        none_left(&tensors)?;
        layer.pack()
    }
}
