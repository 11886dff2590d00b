//! The device: a GPU's context, its kernels, and memory.

use crate::buffer::{Buffer, Memory, Pool};
use crate::driver::{self, Context, Facts, check};
use crate::error::CudaError;
use crate::event::Event;
use crate::image::{self, Function};
use crate::ops::decode;
use crate::stream::Stream;
use cudarc::driver::sys::{self, CUmemorytype, CUpointer_attribute};
use moe_core::ops::DecodeDims;
use moe_core::{Device, Elem, In, OpId, Out, Scalar, expect};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An NVIDIA GPU of compute capability 7.5 or newer. Clones share it.
///
/// Storage types are f32, bf16 and f16. Nothing but the driver has to be installed.
#[derive(Clone)]
pub struct Cuda(Arc<Inner>);

struct Inner {
    context: Arc<Context>,
    facts: Facts,
    functions: HashMap<&'static str, Function>,
    pool: Arc<Pool>,
}

impl Cuda {
    /// The first GPU.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new() -> Result<Self, CudaError> {
        Self::open(0)
    }

    /// GPU number `ordinal`, with all its kernels loaded.
    ///
    /// # Errors
    /// [`CudaError`] that says what is missing, of kind [`Unavailable`](moe_core::ErrorKind::Unavailable), if there is no
    /// driver, an old one, no such device, or a device too old for the kernels.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let context = Arc::new(Context::open(ordinal)?);
        let facts = Facts::of(context.device())?;
        let (name, major, minor) = (facts.name.clone(), facts.major, facts.minor);
        if (major, minor) < (7, 5) {
            return Err(CudaError::OldDevice { name, major, minor });
        }
        if !facts.pools {
            return Err(CudaError::Lacks { name, what: "memory pools" });
        }
        let functions = image::load(&context, &facts)?;
        let pool = Arc::new(Pool::new(&context)?);
        Ok(Self(Arc::new(Inner { context, facts, functions, pool })))
    }

    /// Number of GPUs; 0 if there is a driver but no GPU.
    ///
    /// # Errors
    /// [`CudaError`] that says what is missing if there is no driver or an old one.
    pub fn count() -> Result<usize, CudaError> {
        driver::count()
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.0.facts.name
    }

    /// Compute capability: major, minor.
    pub fn capability(&self) -> (i32, i32) {
        (self.0.facts.major, self.0.facts.minor)
    }

    /// Lets the other GPUs of this process, where they can, read and write this one's buffers, those there are and those to come:
    /// NCCL moves elements between threads' GPUs from buffer to buffer.
    ///
    /// # Errors
    /// The driver's.
    pub fn open_to_peers(&self) -> Result<(), CudaError> {
        self.0.pool.open_to(&self.context().peers()?)
    }

    /// Every kernel that was loaded for this GPU, and how often it has been launched; in a captured graph, once. So a test, or a run
    /// under a tool that looks for faults, can tell that it has reached all of them.
    pub fn kernels(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let functions = self.0.functions.iter();
        functions.map(|(name, function)| (*name, function.launches.load(Ordering::Relaxed)))
    }

    /// Bytes of GPU memory that all buffers of this device have together.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<Memory, CudaError> {
        self.0.pool.memory()
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.0.facts
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.context
    }

    pub(crate) fn function(&self, name: &'static str) -> Result<&Function, CudaError> {
        let missing = || CudaError::Lacks { name: self.name().into(), what: name };
        self.0.functions.get(name).ok_or_else(missing)
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("name", &self.name()).field("capability", &self.capability()).finish()
    }
}

impl Device for Cuda {
    type Error = CudaError;
    type Stream = Stream;
    type Event = Event;
    type Mem<T: Elem> = Buffer<T>;
    type Owned<T: Elem> = Buffer<T>;

    fn stream(&self) -> Result<Stream, CudaError> {
        Stream::new(&self.0.pool)
    }

    fn alloc<T: Elem>(&self, stream: &Stream, len: usize) -> Result<Buffer<T>, CudaError> {
        Buffer::zeroed(&self.0.pool, stream, len)
    }

    fn len<T: Elem>(mem: &Buffer<T>) -> usize {
        mem.len
    }

    fn upload<T: Elem>(
        &self,
        stream: &Stream,
        source: &[T],
        target: Out<'_, Self, T>,
    ) -> Result<(), CudaError> {
        expect(OpId("upload"), "source", &[target.len()], source.len())?;
        let (buffer, range) = target.parts();
        let work = stream.work_outside_capture("an upload")?;
        buffer.used(&work, OpId("upload"), "target", true)?;
        if source.is_empty() {
            return Ok(());
        }
        let to = buffer.address(range.start);
        let from = source.as_ptr();
        let mut kind = CUmemorytype::CU_MEMORYTYPE_HOST;
        let key = CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        // SAFETY: the target has as many bytes as the source. The driver has read ordinary memory when the call returns;
        // pinned memory, which it knows, it reads later, so that is waited for.
        unsafe {
            let code = sys::cuMemcpyHtoDAsync_v2(to, from.cast(), size_of_val(source), stream.0.raw);
            check("cuMemcpyHtoDAsync", code)?;
            let pinned = sys::cuPointerGetAttribute((&raw mut kind).cast(), key, from as u64);
            if check("cuPointerGetAttribute", pinned).is_ok() { work.finish() } else { Ok(()) }
        }
    }

    fn download<T: Elem>(
        &self,
        stream: &Stream,
        source: In<'_, Self, T>,
        target: &mut [T],
    ) -> Result<(), CudaError> {
        expect(OpId("download"), "target", &[source.len()], target.len())?;
        let (buffer, range) = source.parts();
        let work = stream.work_outside_capture("a download")?;
        buffer.used(&work, OpId("download"), "source", false)?;
        let from = buffer.address(range.start);
        let (to, bytes) = (target.as_mut_ptr(), size_of_val(target));
        if bytes > 0 {
            // SAFETY: the target has as many bytes as the source, and lives until the copy is waited for.
            let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, stream.0.raw) };
            check("cuMemcpyDtoHAsync", code)?;
        }
        work.finish()
    }

    fn copy<T: Elem>(
        &self,
        stream: &Stream,
        source: In<'_, Self, T>,
        target: Out<'_, Self, T>,
    ) -> Result<(), CudaError> {
        expect(OpId("copy"), "source", &[target.len()], source.len())?;
        let bytes = source.len() * size_of::<T>();
        let ((source, from), (target, to)) = (source.parts(), target.parts());
        let work = stream.work()?;
        source.used(&work, OpId("copy"), "source", false)?;
        target.used(&work, OpId("copy"), "target", true)?;
        let (from, to) = (source.address(from.start), target.address(to.start));
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges lie inside their buffers and have as many bytes.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream.0.raw) })
    }

    fn decodes<T: Scalar>(&self, dims: &DecodeDims) -> bool {
        decode::fits(self, T::DTYPE, dims)
    }

    fn hand_over<T: Elem>(
        &self,
        buffer: &mut Buffer<T>,
        from: &Stream,
        to: &Stream,
    ) -> Result<(), CudaError> {
        from.intact()?;
        to.follow(from)?;
        buffer.give_to(to);
        Ok(())
    }

    fn record(&self, stream: &Stream) -> Result<Event, CudaError> {
        stream.intact()?;
        Event::record(stream)
    }

    fn wait(&self, stream: &Stream, event: &Event) -> Result<(), CudaError> {
        event.hold(stream)
    }

    fn sync(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.sync()
    }
}
