//! The device: a thread pool and a vector unit.

use crate::error::CpuError;
use crate::gemm::{Isa, Unit, packed_len};
use crate::memory::Buffer;
use moe_core::ops::PackDims;
use moe_core::{Device, Elem, In, OpId, Out, Scalar, expect};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::fmt;
use std::sync::Arc;

/// This machine's processor. Clones share their threads.
///
/// A launch has finished when it returns, so streams and events are empty values, a buffer may be used anywhere at
/// once, and handing it over does nothing. Storage types are f32, bf16 and f16.
#[derive(Clone)]
pub struct Cpu(Arc<Inner>);

struct Inner {
    pool: ThreadPool,
    unit: Unit,
}

impl Cpu {
    /// All cores, and the fastest vector unit.
    ///
    /// # Errors
    /// [`CpuError::Threads`] if the threads do not start.
    pub fn new() -> Result<Self, CpuError> {
        Self::with_threads(0)
    }

    /// This many threads; 0 for as many as there are cores. No result depends on it.
    ///
    /// # Errors
    /// [`CpuError::Threads`] if the threads do not start.
    pub fn with_threads(threads: usize) -> Result<Self, CpuError> {
        Self::with_isa(threads, Isa::best())
    }

    /// This many threads, and this instruction set even if there is a faster one.
    ///
    /// # Errors
    /// [`CpuError::Isa`] if the processor does not have it; [`CpuError::Threads`] if the threads do not start.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self, CpuError> {
        let unit = Unit::new(isa).ok_or(CpuError::Isa(isa))?;
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("moe-cpu-{index}"))
            .build()
            .map_err(|source| CpuError::Threads { threads, source })?;
        Ok(Self(Arc::new(Inner { pool, unit })))
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.0.pool.current_num_threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.0.unit.isa()
    }

    pub(crate) fn unit(&self) -> Unit {
        self.0.unit
    }

    pub(crate) fn pool(&self) -> &ThreadPool {
        &self.0.pool
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("threads", &self.threads()).field("isa", &self.isa()).finish()
    }
}

impl Device for Cpu {
    type Error = CpuError;
    type Stream = ();
    type Event = ();
    type Mem<T: Elem> = [T];
    type Owned<T: Elem> = Buffer<T>;

    fn stream(&self) -> Result<(), CpuError> {
        Ok(())
    }

    fn alloc<T: Elem>(&self, (): &(), len: usize) -> Result<Buffer<T>, CpuError> {
        Buffer::zeroed(len).ok_or(CpuError::Memory { len, dtype: T::DTYPE })
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

    fn upload<T: Elem>(&self, (): &(), source: &[T], target: Out<'_, Self, T>) -> Result<(), CpuError> {
        expect(OpId("upload"), "source", &[target.len()], source.len())?;
        target.host().copy_from_slice(source);
        Ok(())
    }

    fn download<T: Elem>(&self, (): &(), source: In<'_, Self, T>, target: &mut [T]) -> Result<(), CpuError> {
        expect(OpId("download"), "target", &[source.len()], target.len())?;
        target.copy_from_slice(source.host());
        Ok(())
    }

    fn copy<T: Elem>(
        &self,
        (): &(),
        source: In<'_, Self, T>,
        target: Out<'_, Self, T>,
    ) -> Result<(), CpuError> {
        expect(OpId("copy"), "source", &[target.len()], source.len())?;
        target.host().copy_from_slice(source.host());
        Ok(())
    }

    fn hand_over<T: Elem>(&self, _: &mut Buffer<T>, (): &(), (): &()) -> Result<(), CpuError> {
        Ok(())
    }

    fn record(&self, (): &()) -> Result<(), CpuError> {
        Ok(())
    }

    fn wait(&self, (): &(), (): &()) -> Result<(), CpuError> {
        Ok(())
    }

    fn sync(&self, (): &()) -> Result<(), CpuError> {
        Ok(())
    }

    fn packed_len<T: Scalar>(&self, dims: &PackDims) -> usize {
        packed_len(self.unit(), T::DTYPE, dims)
    }

    fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.pool.install(work)
    }
}
