//! Memory: bytes behind a handle.

use crate::error::FarError;
use crate::order::Uses;
use crate::stream::Stream;
use moe_core::Elem;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a handle names: freed when neither a handle nor a launch in the queue holds it any more.
pub(crate) type Bytes = Arc<Mutex<Vec<u8>>>;

/// Elements on the device. Owned and borrowed memory are the same type.
pub struct Memory<T> {
    bytes: Bytes,
    len: usize,
    uses: Mutex<Uses>,
    holds: PhantomData<T>,
}

impl<T: Elem> Memory<T> {
    pub(crate) fn zeroed(stream: &Stream, len: usize) -> Result<Self, FarError> {
        let none = || FarError::Memory { len, dtype: T::DTYPE };
        let size = len.checked_mul(size_of::<T>()).ok_or_else(none)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| none())?;
        bytes.resize(size, 0);
        let mut uses = Uses::default();
        uses.write(stream.clock())?;
        Ok(Self { bytes: Arc::new(Mutex::new(bytes)), len, uses: Mutex::new(uses), holds: PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a range of elements, for work on `stream` that reads them.
    pub(crate) fn source(&self, range: Range<usize>, stream: &Stream) -> Result<Place, FarError> {
        locked(&self.uses).read(stream.clock())?;
        Ok(self.place(range))
    }

    /// The bytes of a range of elements, for work on `stream` that writes them.
    pub(crate) fn target(&self, range: Range<usize>, stream: &Stream) -> Result<Place, FarError> {
        locked(&self.uses).write(stream.clock())?;
        Ok(self.place(range))
    }

    fn place(&self, range: Range<usize>) -> Place {
        let range = range.start * size_of::<T>()..range.end * size_of::<T>();
        Place { bytes: self.bytes.clone(), range }
    }
}

/// A range of bytes that a launch in the queue reads or writes.
#[derive(Clone)]
pub(crate) struct Place {
    bytes: Bytes,
    range: Range<usize>,
}

impl Place {
    pub(crate) fn load<T: Elem>(&self) -> Vec<T> {
        bytemuck::pod_collect_to_vec(&locked(&self.bytes)[self.range.clone()])
    }

    pub(crate) fn store<T: Elem>(&self, values: &[T]) {
        locked(&self.bytes)[self.range.clone()].copy_from_slice(bytemuck::cast_slice(values));
    }
}

/// A lock that does not care whether another holder panicked: the values are plain data.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
