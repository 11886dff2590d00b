//! Views: a sample's arguments in a device's memory, handed to the op by name.

use crate::sample::{Arg, Role};
use crate::values::{Values, each};
use moe_core::ops::Weight;
use moe_core::{Device, Elem, In, Out, whole, whole_mut};
use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;

/// One argument in a device's memory.
pub(crate) struct Buffer {
    name: &'static str,
    /// a `D::Owned<E>`
    memory: Box<dyn Any>,
    /// values as they were uploaded, guards included
    uploaded: Values,
    /// where the argument lies between its guards
    pub(crate) range: Range<usize>,
    packed: bool,
    flag: bool,
}

/// Poisoned elements behind every argument.
pub(crate) const GUARD: usize = 5;

impl Buffer {
    /// Copies an argument to the device, with `front` elements before it and `back` behind it in its memory.
    pub(crate) fn upload<D: Device>(
        device: &D,
        stream: &D::Stream,
        name: &'static str,
        values: &Values,
        [front, back]: [usize; 2],
    ) -> Result<Self, D::Error> {
        fn copy<D: Device, E: Elem>(
            device: &D,
            stream: &D::Stream,
            values: &[E],
        ) -> Result<Box<dyn Any>, D::Error> {
            let mut memory = device.alloc::<E>(stream, values.len())?;
            device.upload(stream, values, whole_mut::<D, E>(&mut memory))?;
            Ok(Box::new(memory))
        }
        let uploaded = values.guarded(front, back);
        Ok(Self {
            name,
            memory: each!(&uploaded, v => copy(device, stream, v))?,
            range: front..front + values.len(),
            uploaded,
            packed: false,
            flag: false,
        })
    }

    /// A mark that an argument which is no view is true.
    pub(crate) fn flag(name: &'static str) -> Self {
        Self {
            name,
            memory: Box::new(()),
            uploaded: Values::U8(Vec::new()),
            range: 0..0,
            packed: false,
            flag: true,
        }
    }

    /// The same memory as weights in the device's own layout.
    pub(crate) fn packed(self) -> Self {
        Self { packed: true, ..self }
    }

    /// Copies the argument and its guards back.
    pub(crate) fn download<D: Device>(&self, device: &D, stream: &D::Stream) -> Result<Values, D::Error> {
        fn copy<D: Device, E: Elem>(
            device: &D,
            stream: &D::Stream,
            memory: &dyn Any,
            like: &[E],
        ) -> Result<Values, D::Error> {
            let mut values = like.to_vec();
            let memory = memory.downcast_ref::<D::Owned<E>>().expect("the type of upload");
            device.download(stream, whole::<D, E>(memory), &mut values)?;
            Ok(Values::of(values))
        }
        if self.flag {
            return Ok(self.uploaded.clone());
        }
        each!(&self.uploaded, v => copy(device, stream, &*self.memory, v))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

/// The views of a sample's arguments; each is taken once.
pub struct Views<'a, D: Device> {
    buffers: Vec<&'a mut Buffer>,
    device: PhantomData<D>,
}

impl<'a, D: Device> Views<'a, D> {
    pub(crate) fn new(buffers: &'a mut [Buffer]) -> Self {
        Self { buffers: buffers.iter_mut().collect(), device: PhantomData }
    }

    /// Names of arguments that were not taken.
    pub(crate) fn left(&self) -> Vec<&'static str> {
        self.buffers.iter().map(|buffer| buffer.name).collect()
    }

    fn take(&mut self, name: &str) -> Option<&'a mut Buffer> {
        let at = self.buffers.iter().position(|buffer| buffer.name == name)?;
        Some(self.buffers.swap_remove(at))
    }

    /// An optional argument that the op reads.
    ///
    /// # Panics
    /// If the sample holds elements of another type, or the op wants the argument twice.
    pub fn read_if<E: Elem>(&mut self, name: &str) -> Option<In<'a, D, E>> {
        let buffer = self.take(name)?;
        let memory: &'a D::Owned<E> = buffer.memory.downcast_ref().expect("the sample's type");
        Some(whole::<D, E>(memory).slice(buffer.range.clone()).expect("inside the guards"))
    }

    /// An argument that the op reads.
    ///
    /// # Panics
    /// If the sample lacks it.
    pub fn read<E: Elem>(&mut self, name: &str) -> In<'a, D, E> {
        self.read_if(name).unwrap_or_else(|| panic!("the sample has no argument `{name}`"))
    }

    /// An optional argument that the op writes.
    ///
    /// # Panics
    /// If the sample holds elements of another type, or the op wants the argument twice.
    pub fn write_if<E: Elem>(&mut self, name: &str) -> Option<Out<'a, D, E>> {
        let buffer = self.take(name)?;
        let memory: &'a mut D::Owned<E> = buffer.memory.downcast_mut().expect("the sample's type");
        Some(whole_mut::<D, E>(memory).slice(buffer.range.clone()).expect("inside the guards"))
    }

    /// An argument that the op writes.
    ///
    /// # Panics
    /// If the sample lacks it.
    pub fn write<E: Elem>(&mut self, name: &str) -> Out<'a, D, E> {
        self.write_if(name).unwrap_or_else(|| panic!("the sample has no argument `{name}`"))
    }

    /// Weights, as they are or in the device's own layout.
    ///
    /// # Panics
    /// If the sample lacks them.
    pub fn weight<E: Elem>(&mut self, name: &str) -> Weight<'a, D, E> {
        match self.buffers.iter().any(|buffer| buffer.name == name && buffer.packed) {
            true => Weight::Packed(self.read(name)),
            false => Weight::Plain(self.read(name)),
        }
    }

    /// An argument that is a truth value.
    pub fn flag(&mut self, name: &str) -> bool {
        self.take(name).is_some()
    }
}

/// The elements that an argument has on this device.
pub(crate) fn on_device<D: Device, T: moe_core::Scalar>(device: &D, arg: &Arg) -> Values {
    match arg.role {
        Role::Layout(dims) => match device.packed_len::<T>(&dims) {
            0 => arg.values.clone(),
            len => Values::poison(u8::DTYPE, len),
        },
        _ => arg.values.clone(),
    }
}
