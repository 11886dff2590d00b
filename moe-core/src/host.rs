//! The reference device: slices, and every op by its definition.

use crate::device::{Device, Kernel, Op, Path};
use crate::error::{BackendError, ErrorKind, OpId, ShapeError, expect};
use crate::scalar::Elem;
use crate::view::{In, Out};
use alloc::vec::Vec;

/// The device whose memory is a `Vec` and whose kernels are the ops' references. The judge of all others;
/// the only one that runs `f64`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

/// What can go wrong on [`Host`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Memory ran out.
    #[error("out of memory: could not allocate {len} elements of {dtype}")]
    Memory {
        /// elements asked for
        len: usize,
        /// their type
        dtype: crate::DType,
    },
    /// A copy's lengths differ, or an index points outside.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

impl BackendError for HostError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Memory { .. } => ErrorKind::OutOfMemory,
            Self::Shape(_) => ErrorKind::Shape,
        }
    }
}

impl Device for Host {
    type Error = HostError;
    type Stream = ();
    type Event = ();
    type Mem<T: Elem> = [T];
    type Owned<T: Elem> = Vec<T>;

    fn stream(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn alloc<T: Elem>(&self, (): &(), len: usize) -> Result<Vec<T>, HostError> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(len).map_err(|_| HostError::Memory { len, dtype: T::DTYPE })?;
        memory.resize(len, T::default());
        Ok(memory)
    }

    fn len<T: Elem>(mem: &[T]) -> usize {
        mem.len()
    }

    fn host<T: Elem>(mem: &[T]) -> Option<&[T]> {
        Some(mem)
    }

    fn host_mut<T: Elem>(mem: &mut [T]) -> Option<&mut [T]> {
        Some(mem)
    }

    fn upload<T: Elem>(&self, (): &(), source: &[T], target: Out<'_, Self, T>) -> Result<(), HostError> {
        expect(OpId("upload"), "source", &[target.len()], source.len())?;
        target.host().copy_from_slice(source);
        Ok(())
    }

    fn download<T: Elem>(&self, (): &(), source: In<'_, Self, T>, target: &mut [T]) -> Result<(), HostError> {
        expect(OpId("download"), "target", &[source.len()], target.len())?;
        target.copy_from_slice(source.host());
        Ok(())
    }

    fn copy<T: Elem>(
        &self,
        (): &(),
        source: In<'_, Self, T>,
        target: Out<'_, Self, T>,
    ) -> Result<(), HostError> {
        expect(OpId("copy"), "source", &[target.len()], source.len())?;
        target.host().copy_from_slice(source.host());
        Ok(())
    }

    fn hand_over<T: Elem>(&self, _: &mut Vec<T>, (): &(), (): &()) -> Result<(), HostError> {
        Ok(())
    }

    fn record(&self, (): &()) -> Result<(), HostError> {
        Ok(())
    }

    fn wait(&self, (): &(), (): &()) -> Result<(), HostError> {
        Ok(())
    }

    fn sync(&self, (): &()) -> Result<(), HostError> {
        Ok(())
    }
}

impl<O: Op> Kernel<O> for Host {
    fn launch(
        &self,
        (): &(),
        dims: &O::Dims,
        args: O::Args<'_, Self>,
        _: Out<'_, Self, u8>,
    ) -> Result<Path, HostError> {
        O::reference(dims, args)?;
        Ok(Path("reference"))
    }
}
