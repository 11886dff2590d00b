//! The device: its choice, its programs, and memory.

use crate::buffer::{Buffer, copy_bytes};
use crate::cache::Cache;
use crate::context::Context;
use crate::error::{OpenClError, check_wait};
use crate::event::Event;
use crate::platform::{self, DeviceKind, Facts, Listed};
use crate::program::{Program, Programs, Source};
use crate::stream::Stream;
use crate::way::{Way, Ways};
use moe_core::{DType, Device, Elem, In, OpId, Out, expect};
use ocl::ffi;
use std::fmt;
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::sync::Arc;

/// A device with OpenCL 1.2 or newer: Intel's GPUs first, and any other that its platform brings. Clones share it.
///
/// Storage types are f32, bf16 and f16, on devices without 16-bit arithmetic too.
#[derive(Clone)]
pub struct OpenCl(Arc<Inner>);

struct Inner {
    context: Arc<Context>,
    programs: Programs,
}

impl OpenCl {
    /// The device that is likely the best: a GPU before others, Intel's before others.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new() -> Result<Self, OpenClError> {
        let best = |listed: &Listed| {
            let gpu = listed.facts.kind == DeviceKind::Gpu;
            (!gpu, !listed.facts.vendor.starts_with("Intel"))
        };
        let found = Self::list()?.into_iter().min_by_key(best);
        let found = found.ok_or(OpenClError::NoDevice { what: "device", asked: 0, found: 0 })?;
        Self::open_listed(found, None)
    }

    /// Device number `device` of platform number `platform`, as [`list`](Self::list) counts them. A storage type's programs are
    /// built at its first launch, and kept in the user's cache folder, so that only the first start takes long.
    ///
    /// # Errors
    /// [`OpenClError`] of kind [`Unavailable`](moe_core::ErrorKind::Unavailable), which says what to install, if there is no
    /// platform or no such device; of kind [`Unsupported`](moe_core::ErrorKind::Unsupported) if it cannot run the kernels.
    pub fn open(platform: usize, device: usize) -> Result<Self, OpenClError> {
        let all = Self::list()?;
        let platforms = all.iter().map(|listed| listed.platform + 1).max().unwrap_or(0);
        if platform >= platforms {
            return Err(OpenClError::NoDevice { what: "platform", asked: platform, found: platforms });
        }
        let mut of_platform: Vec<Listed> =
            all.into_iter().filter(|listed| listed.platform == platform).collect();
        if device >= of_platform.len() {
            let (what, asked, found) = ("device", device, of_platform.len());
            return Err(OpenClError::NoDevice { what, asked, found });
        }
        Self::open_listed(of_platform.swap_remove(device), None)
    }

    /// Every device of the list, in its order.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_all() -> Result<Vec<Self>, OpenClError> {
        Self::list()?.into_iter().map(|listed| Self::open_listed(listed, None)).collect()
    }

    /// A device of the list. `cache` is the folder of built programs, in place of the user's.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_listed(listed: Listed, cache: Option<PathBuf>) -> Result<Self, OpenClError> {
        Self::open_with(listed, cache, None)
    }

    /// A device of the list, whose expert products are computed in this way; for tests and measurements.
    /// What it does not serve goes the way that stands beside it: subgroups beside the matrix unit.
    ///
    /// # Errors
    /// As [`open`](Self::open); of kind [`Unsupported`](moe_core::ErrorKind::Unsupported) if the device lacks what the way needs.
    pub fn open_way(listed: Listed, way: Way) -> Result<Self, OpenClError> {
        Self::open_with(listed, None, Some(way))
    }

    fn open_with(listed: Listed, cache: Option<PathBuf>, way: Option<Way>) -> Result<Self, OpenClError> {
        if listed.facts.group < FEWEST_THREADS {
            let name = listed.facts.name.clone();
            return Err(OpenClError::Lacks { name, what: "groups of 64 work items" });
        }
        let Some(ways) = Ways::new(&listed.facts, way) else {
            let name = listed.facts.name.clone();
            return Err(OpenClError::Lacks {
                name,
                what: "room or instructions for this way of the expert products",
            });
        };
        let cache = Cache::new(&listed, cache)?;
        let context = Arc::new(Context::open(listed)?);
        Ok(Self(Arc::new(Inner { context, programs: Programs::new(cache, ways) })))
    }

    /// Every device of every platform.
    ///
    /// # Errors
    /// [`OpenClError::NoPlatform`], which says what to install.
    pub fn list() -> Result<Vec<Listed>, OpenClError> {
        platform::list()
    }

    /// What the device reports.
    pub fn facts(&self) -> &Facts {
        &self.0.context.listed.facts
    }

    /// An error where the reproducible gate's bits cannot be had.
    pub(crate) fn gives_exact_bits(&self) -> Result<(), OpenClError> {
        let facts = self.facts();
        if facts.subnormals {
            return Ok(());
        }
        Err(OpenClError::Inexact { name: facts.name.clone(), what: "subnormal f32" })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.context
    }

    pub(crate) fn ways(&self) -> &Ways {
        self.0.programs.ways()
    }

    pub(crate) fn program(
        &self,
        source: &Source,
        storage: DType,
        way: Option<Way>,
    ) -> Result<&Program, OpenClError> {
        self.0.programs.get(self.context(), &(source.name, storage, way))
    }
}

/// Work items of a group that every kernel may count on.
const FEWEST_THREADS: usize = 64;

impl fmt::Debug for OpenCl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenCl").field("name", &self.facts().name).finish_non_exhaustive()
    }
}

impl Device for OpenCl {
    type Error = OpenClError;
    type Stream = Stream;
    type Event = Event;
    type Mem<T: Elem> = Buffer<T>;
    type Owned<T: Elem> = Buffer<T>;

    fn stream(&self) -> Result<Stream, OpenClError> {
        Stream::new(self.context())
    }

    fn alloc<T: Elem>(&self, stream: &Stream, len: usize) -> Result<Buffer<T>, OpenClError> {
        Buffer::zeroed(self.context(), stream, len)
    }

    fn len<T: Elem>(mem: &Buffer<T>) -> usize {
        mem.len
    }

    fn upload<T: Elem>(
        &self,
        stream: &Stream,
        source: &[T],
        target: Out<'_, Self, T>,
    ) -> Result<(), OpenClError> {
        expect(OpId("upload"), "source", &[target.len()], source.len())?;
        let (buffer, range) = target.parts();
        let work = stream.work();
        buffer.used(&work, OpId("upload"), "target", true)?;
        if source.is_empty() {
            return Ok(());
        }
        let (at, bytes, from) = (range.start * size_of::<T>(), size_of_val(source), source.as_ptr().cast());
        // SAFETY: the target has as many bytes as the source, which has been read when the call returns.
        let code = unsafe {
            let (queue, buffer, wait) = (stream.0.raw, buffer.raw, ffi::CL_TRUE);
            ffi::clEnqueueWriteBuffer(queue, buffer, wait, at, bytes, from, 0, null(), null_mut())
        };
        check_wait("clEnqueueWriteBuffer", code).map(|()| work.seen())
    }

    fn download<T: Elem>(
        &self,
        stream: &Stream,
        source: In<'_, Self, T>,
        target: &mut [T],
    ) -> Result<(), OpenClError> {
        expect(OpId("download"), "target", &[source.len()], target.len())?;
        let (buffer, range) = source.parts();
        let work = stream.work();
        buffer.used(&work, OpId("download"), "source", false)?;
        if target.is_empty() {
            return work.finish();
        }
        let (at, bytes, to) = (range.start * size_of::<T>(), size_of_val(target), target.as_mut_ptr().cast());
        // SAFETY: the target has as many bytes as the source, and has been written when the call returns.
        let code = unsafe {
            let (queue, buffer, wait) = (stream.0.raw, buffer.raw, ffi::CL_TRUE);
            ffi::clEnqueueReadBuffer(queue, buffer, wait, at, bytes, to, 0, null(), null_mut())
        };
        check_wait("clEnqueueReadBuffer", code).map(|()| work.seen())
    }

    fn copy<T: Elem>(
        &self,
        stream: &Stream,
        source: In<'_, Self, T>,
        target: Out<'_, Self, T>,
    ) -> Result<(), OpenClError> {
        expect(OpId("copy"), "source", &[target.len()], source.len())?;
        let bytes = source.len() * size_of::<T>();
        let ((source, from), (target, to)) = (source.parts(), target.parts());
        let work = stream.work();
        source.used(&work, OpId("copy"), "source", false)?;
        target.used(&work, OpId("copy"), "target", true)?;
        let [from, to] = [from.start, to.start].map(|start| start * size_of::<T>());
        copy_bytes(&work, (source, from), (target, to), bytes)
    }

    fn hand_over<T: Elem>(&self, _: &mut Buffer<T>, from: &Stream, to: &Stream) -> Result<(), OpenClError> {
        to.follow(from)
    }

    fn record(&self, stream: &Stream) -> Result<Event, OpenClError> {
        Event::record(stream)
    }

    fn wait(&self, stream: &Stream, event: &Event) -> Result<(), OpenClError> {
        event.hold(stream)
    }

    fn sync(&self, stream: &Stream) -> Result<(), OpenClError> {
        stream.sync()
    }
}
