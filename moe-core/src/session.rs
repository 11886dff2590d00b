//! Session: a device, a stream, scratch memory, and the one way that launches go.

use crate::device::{Device, Kernel, Op, Path};
use crate::error::{Error, OpId};
use crate::scalar::Elem;
use crate::trace::Trace;
use crate::view::{In, Out, whole_mut};

/// Runs one op: checks its arguments, then launches it.
///
/// # Errors
/// [`Error::Shape`] before the launch; [`Error::Limit`] if `scratch` is too small; [`Error::Device`].
pub fn run<O: Op, D: Kernel<O>>(
    device: &D,
    stream: &D::Stream,
    dims: &O::Dims,
    args: O::Args<'_, D>,
    scratch: Out<'_, D, u8>,
) -> Result<Path, Error<D::Error>> {
    O::check::<D>(dims, &args)?;
    let needed = Kernel::<O>::scratch(device, dims);
    if needed > scratch.len() {
        return Err(Error::Limit { what: "scratch", got: needed, limit: scratch.len() });
    }
    device.launch(stream, dims, args, scratch).map_err(Error::Device)
}

/// A device with one stream and scratch memory for the largest op that it will run. Every launch of a runner goes
/// through here: check, launch, path, trace, injected fault.
pub struct Session<D: Device> {
    device: D,
    stream: D::Stream,
    scratch: D::Owned<u8>,
    trace: Trace,
}

impl<D: Device> Session<D> {
    /// A session whose ops need at most `scratch` bytes each.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no stream or memory left.
    pub fn new(device: &D, scratch: usize) -> Result<Self, Error<D::Error>> {
        let stream = device.stream().map_err(Error::Device)?;
        let scratch = device.alloc(&stream, scratch).map_err(Error::Device)?;
        Ok(Self { device: device.clone(), stream, scratch, trace: Trace::new() })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The stream.
    pub fn stream(&self) -> &D::Stream {
        &self.stream
    }

    /// Paths taken so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Paths taken so far, to clear them or to plan a fault.
    pub fn trace_mut(&mut self) -> &mut Trace {
        &mut self.trace
    }

    /// Runs one op on the session's stream.
    ///
    /// # Errors
    /// As [`run`]; [`Error::Injected`] if a fault was planned for this launch.
    pub fn run<O: Op>(&mut self, dims: &O::Dims, args: O::Args<'_, D>) -> Result<(), Error<D::Error>>
    where
        D: Kernel<O>,
    {
        if self.trace.fault_due(O::ID) {
            return Err(Error::Injected(O::ID));
        }
        let scratch = whole_mut::<D, u8>(&mut self.scratch);
        let path = run::<O, D>(&self.device, &self.stream, dims, args, scratch)?;
        self.trace.record(O::ID, path);
        Ok(())
    }

    /// Zeroed memory on the session's stream.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none left.
    pub fn alloc<T: Elem>(&self, len: usize) -> Result<D::Owned<T>, Error<D::Error>> {
        self.device.alloc(&self.stream, len).map_err(Error::Device)
    }

    /// Copies from the host; the source has been read when this returns.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ; [`Error::Device`].
    pub fn upload<T: Elem>(&self, source: &[T], target: Out<'_, D, T>) -> Result<(), Error<D::Error>> {
        crate::expect(OpId("upload"), "source", &[target.len()], source.len())?;
        self.device.upload(&self.stream, source, target).map_err(Error::Device)
    }

    /// Copies to the host and waits for it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ; [`Error::Device`].
    pub fn download<T: Elem>(&self, source: In<'_, D, T>, target: &mut [T]) -> Result<(), Error<D::Error>> {
        crate::expect(OpId("download"), "target", &[source.len()], target.len())?;
        self.device.download(&self.stream, source, target).map_err(Error::Device)
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// [`Error::Device`]: faults of earlier launches surface here.
    pub fn sync(&self) -> Result<(), Error<D::Error>> {
        self.device.sync(&self.stream).map_err(Error::Device)
    }
}
