//! Rig: a device and a stream, and launches with values from the host.

use anyhow::{Result, ensure};
use moe_core::ops::{PackDims, PackWeights, PackWeightsArgs, Weight};
use moe_core::{Device, Elem, In, Kernel, Op, Scalar, run, whole, whole_mut};

/// A device with a stream. Results are poisoned before a launch, so that an element which the op should have
/// written, and has not, is seen.
pub(crate) struct Rig<D: Device> {
    device: D,
    stream: D::Stream,
}

/// Elements of the largest result: a damaged file must not ask for more memory than there is.
const LARGEST: usize = 1 << 26;

/// Weights on the device in the form that the layer would use.
pub(crate) enum Loaded<D: Device, T: Scalar> {
    /// as they are
    Plain(D::Owned<T>),
    /// in the device's own layout
    Packed(D::Owned<u8>),
}

impl<D: Device, T: Scalar> Loaded<D, T> {
    /// The weights as an argument of an op.
    pub(crate) fn weight(&self) -> Weight<'_, D, T> {
        match self {
            Self::Plain(plain) => Weight::Plain(whole::<D, T>(plain)),
            Self::Packed(packed) => Weight::Packed(whole::<D, u8>(packed)),
        }
    }
}

impl<D: Device> Rig<D> {
    /// A rig with a stream of its own.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn new(device: &D) -> Result<Self> {
        Ok(Self { device: device.clone(), stream: device.stream()? })
    }

    /// The device.
    pub(crate) fn device(&self) -> &D {
        &self.device
    }

    /// Runs one op and waits for it.
    ///
    /// # Errors
    /// Shape errors and the device's.
    pub(crate) fn launch<O: Op>(&self, dims: &O::Dims, args: O::Args<'_, D>) -> Result<()>
    where
        D: Kernel<O>,
    {
        let bytes = Kernel::<O>::scratch(&self.device, dims);
        let mut scratch = self.device.alloc::<u8>(&self.stream, bytes)?;
        run::<O, D>(&self.device, &self.stream, dims, args, whole_mut::<D, u8>(&mut scratch))?;
        Ok(self.device.sync(&self.stream)?)
    }

    /// Values on the device.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn put<T: Elem>(&self, values: &[T]) -> Result<D::Owned<T>> {
        let mut buffer = self.device.alloc::<T>(&self.stream, values.len())?;
        self.device.upload(&self.stream, values, whole_mut::<D, T>(&mut buffer))?;
        Ok(buffer)
    }

    /// Optional values on the device.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn put_if<T: Elem>(&self, values: Option<&[T]>) -> Result<Option<D::Owned<T>>> {
        values.map(|values| self.put(values)).transpose()
    }

    /// Memory whose bytes are all ones: NaN, or an index that points nowhere.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn poisoned<T: Elem>(&self, len: usize) -> Result<D::Owned<T>> {
        ensure!(len <= LARGEST, "a result of {len} elements is too large");
        let ones = [0xff; 8];
        self.put(&vec![bytemuck::pod_read_unaligned::<T>(&ones[..size_of::<T>()]); len])
    }

    /// Values back from the device.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn get<T: Elem>(&self, buffer: &D::Owned<T>) -> Result<Vec<T>> {
        let view = whole::<D, T>(buffer);
        let mut values = vec![T::default(); view.len()];
        self.device.download(&self.stream, view, &mut values)?;
        Ok(values)
    }

    /// Weights on the device, packed if it wants them packed.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn load<T: Scalar>(&self, weights: &[T], dims: PackDims) -> Result<Loaded<D, T>>
    where
        D: Kernel<PackWeights<T>>,
    {
        let plain = self.put(weights)?;
        let len = self.device.packed_len::<T>(&dims);
        if len == 0 {
            return Ok(Loaded::Plain(plain));
        }
        let mut packed = self.poisoned::<u8>(len)?;
        let args = PackWeightsArgs { plain: whole::<D, T>(&plain), packed: whole_mut::<D, u8>(&mut packed) };
        self.launch::<PackWeights<T>>(&dims, args)?;
        Ok(Loaded::Packed(packed))
    }
}

/// A view of an optional buffer.
pub(crate) fn view_if<D: Device, T: Elem>(buffer: &Option<D::Owned<T>>) -> Option<In<'_, D, T>> {
    buffer.as_ref().map(|buffer| whole::<D, T>(buffer))
}
