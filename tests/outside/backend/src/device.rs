//! The device: streams, memory, and copies between here and there.

use crate::error::FarError;
use crate::memory::Memory;
use crate::stream::{Event, Stream};
use crate::travel::{Parcel, Travel};
use moe_core::ops::PackDims;
use moe_core::{Device, Elem, In, OpId, Out, Scalar, expect};

/// A device behind a queue.
#[derive(Clone, Copy, Debug, Default)]
pub struct Far;

impl Device for Far {
    type Error = FarError;
    type Stream = Stream;
    type Event = Event;
    type Mem<T: Elem> = Memory<T>;
    type Owned<T: Elem> = Memory<T>;

    fn stream(&self) -> Result<Stream, FarError> {
        Stream::new()
    }

    fn alloc<T: Elem>(&self, stream: &Stream, len: usize) -> Result<Memory<T>, FarError> {
        Memory::zeroed(stream, len)
    }

    fn len<T: Elem>(mem: &Memory<T>) -> usize {
        mem.len()
    }

    fn upload<T: Elem>(
        &self,
        stream: &Stream,
        source: &[T],
        target: Out<'_, Self, T>,
    ) -> Result<(), FarError> {
        expect(OpId("upload"), "source", &[target.len()], source.len())?;
        let (memory, range) = target.parts();
        let place = memory.target(range, stream)?;
        // The copy is what allows the caller to change the source at once.
        let source = source.to_vec();
        stream.put(move || {
            place.store(&source);
            Ok(())
        })?;
        Ok(())
    }

    fn download<T: Elem>(
        &self,
        stream: &Stream,
        source: In<'_, Self, T>,
        target: &mut [T],
    ) -> Result<(), FarError> {
        expect(OpId("download"), "target", &[source.len()], target.len())?;
        let (memory, range) = source.parts();
        let place = memory.source(range, stream)?;
        target.copy_from_slice(&stream.ask(move || place.load::<T>())?);
        Ok(())
    }

    fn copy<T: Elem>(
        &self,
        stream: &Stream,
        source: In<'_, Self, T>,
        target: Out<'_, Self, T>,
    ) -> Result<(), FarError> {
        expect(OpId("copy"), "source", &[target.len()], source.len())?;
        let (mut source, mut target) = (source.leave(stream)?, target.leave(stream)?);
        stream.put(move || {
            source.arrive();
            target.arrive();
            target.here().host().copy_from_slice(source.here().host());
            target.back();
            Ok(())
        })?;
        Ok(())
    }

    fn hand_over<T: Elem>(&self, _: &mut Memory<T>, from: &Stream, to: &Stream) -> Result<(), FarError> {
        to.wait(&from.record()?)
    }

    fn record(&self, stream: &Stream) -> Result<Event, FarError> {
        stream.record()
    }

    fn wait(&self, stream: &Stream, event: &Event) -> Result<(), FarError> {
        stream.wait(event)
    }

    fn sync(&self, stream: &Stream) -> Result<(), FarError> {
        stream.ask(|| ())
    }

    /// The layout of the references' own: the weights' bytes.
    fn packed_len<T: Scalar>(&self, dims: &PackDims) -> usize {
        dims.groups * dims.rows * dims.cols * size_of::<T>()
    }
}
