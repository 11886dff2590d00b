//! What a backend is: memory, streams, kernels.

use crate::error::{BackendError, OpId, ShapeError};
use crate::host::Host;
use crate::ops::{DecodeDims, PackDims};
use crate::scalar::{Elem, Scalar};
use crate::view::{In, Out};
use core::borrow::BorrowMut;

/// A place that holds tensors and runs kernels.
///
/// A buffer belongs to the stream that it was allocated on until [`hand_over`](Device::hand_over). Work on one
/// stream runs in order; freeing a buffer is ordered behind the work that uses it.
pub trait Device: Clone + Send + Sync + 'static {
    /// What can go wrong.
    type Error: BackendError;
    /// An ordered queue of work.
    type Stream: Send + Sync;
    /// A mark in a stream.
    type Event: Send;
    /// Memory of elements `T`, borrowed. A slice on hosts.
    type Mem<T: Elem>: ?Sized + Send + Sync;
    /// Memory of elements `T`, owned.
    type Owned<T: Elem>: BorrowMut<Self::Mem<T>> + Send + Sync;

    /// A new stream.
    ///
    /// # Errors
    /// The device's own.
    fn stream(&self) -> Result<Self::Stream, Self::Error>;

    /// Memory for `len` elements, zeroed.
    ///
    /// # Errors
    /// The device's own; [`OutOfMemory`](crate::ErrorKind::OutOfMemory) leaves everything as it was.
    fn alloc<T: Elem>(&self, stream: &Self::Stream, len: usize) -> Result<Self::Owned<T>, Self::Error>;

    /// Number of elements.
    fn len<T: Elem>(mem: &Self::Mem<T>) -> usize;

    /// The elements, if memory is the host's own and a launch has finished when it returns, so that they may be read
    /// in place at any time. `None`: they have to be downloaded.
    fn host<T: Elem>(mem: &Self::Mem<T>) -> Option<&[T]> {
        let _ = mem;
        None
    }

    /// As [`host`](Self::host), to write to.
    fn host_mut<T: Elem>(mem: &mut Self::Mem<T>) -> Option<&mut [T]> {
        let _ = mem;
        None
    }

    /// Copies from the host. The source has been read when this returns. Lengths must be equal.
    ///
    /// # Errors
    /// The device's own.
    fn upload<T: Elem>(
        &self,
        stream: &Self::Stream,
        source: &[T],
        target: Out<'_, Self, T>,
    ) -> Result<(), Self::Error>;

    /// Copies to the host, and waits until that is done. Lengths must be equal.
    ///
    /// # Errors
    /// The device's own.
    fn download<T: Elem>(
        &self,
        stream: &Self::Stream,
        source: In<'_, Self, T>,
        target: &mut [T],
    ) -> Result<(), Self::Error>;

    /// Copies on the device. Lengths must be equal.
    ///
    /// # Errors
    /// The device's own.
    fn copy<T: Elem>(
        &self,
        stream: &Self::Stream,
        source: In<'_, Self, T>,
        target: Out<'_, Self, T>,
    ) -> Result<(), Self::Error>;

    /// Makes `to` wait for `from`, and gives the buffer to `to`.
    ///
    /// # Errors
    /// The device's own.
    fn hand_over<T: Elem>(
        &self,
        buffer: &mut Self::Owned<T>,
        from: &Self::Stream,
        to: &Self::Stream,
    ) -> Result<(), Self::Error>;

    /// Marks the present end of the stream.
    ///
    /// # Errors
    /// The device's own.
    fn record(&self, stream: &Self::Stream) -> Result<Self::Event, Self::Error>;

    /// Work put on `stream` from now on waits for `event`.
    ///
    /// # Errors
    /// The device's own.
    fn wait(&self, stream: &Self::Stream, event: &Self::Event) -> Result<(), Self::Error>;

    /// Waits until all work on the stream is done.
    ///
    /// # Errors
    /// A fault of earlier work surfaces here.
    fn sync(&self, stream: &Self::Stream) -> Result<(), Self::Error>;

    /// Bytes of the layout that this device wants these weights in, or 0 if it reads them as they are.
    /// Pure: equal dimensions, equal answer.
    fn packed_len<T: Scalar>(&self, dims: &PackDims) -> usize {
        let _ = dims;
        0
    }

    /// Whether the device computes these few tokens faster by [`Decode`](crate::ops::Decode) than by its five parts. Pure.
    fn decodes<T: Scalar>(&self, dims: &DecodeDims) -> bool {
        let _ = dims;
        false
    }

    /// Runs `work` where the device's launches are cheapest: a host backend moves it into its thread pool
    /// once, instead of entering the pool at every launch.
    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }
}

/// Which way a kernel took: `"packed avx2"`, `"general"`, ... Chosen by the backend, read back by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path(pub &'static str);

/// One fused step of the layer. Its reference is its definition.
pub trait Op: Sized + 'static {
    /// The op's name.
    const ID: OpId;
    /// Sizes and fixed settings; never a value that changes from step to step.
    type Dims: Copy + Send + Sync;
    /// The views that it reads and writes.
    type Args<'a, D: Device>;

    /// Compares the arguments' lengths with the dimensions. Does not allocate.
    ///
    /// # Errors
    /// [`ShapeError`] that names the argument.
    fn check<D: Device>(dims: &Self::Dims, args: &Self::Args<'_, D>) -> Result<(), ShapeError>;

    /// Computes the op in the plainest way. The arguments have passed `check`.
    ///
    /// # Errors
    /// [`ShapeError::Value`] if an index or offset among the values points outside.
    fn reference(dims: &Self::Dims, args: Self::Args<'_, Host>) -> Result<(), ShapeError>;
}

/// A device that can run `O`.
pub trait Kernel<O: Op>: Device {
    /// Bytes of scratch memory that a launch needs. Pure, and grows with every dimension.
    fn scratch(&self, dims: &O::Dims) -> usize {
        let _ = dims;
        0
    }

    /// Puts the op on the stream. The arguments have passed `check`. Never allocates, synchronises, compiles
    /// or reads back.
    ///
    /// # Errors
    /// The device's own.
    fn launch(
        &self,
        stream: &Self::Stream,
        dims: &O::Dims,
        args: O::Args<'_, Self>,
        scratch: Out<'_, Self, u8>,
    ) -> Result<Path, Self::Error>;
}
