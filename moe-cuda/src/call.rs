//! Call: an op's arguments as addresses, and the launch of its kernels.

use crate::device::Cuda;
use crate::driver::check;
use crate::error::CudaError;
use crate::order::Work;
use crate::stream::Stream;
use cudarc::driver::sys::{self, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchConfig};
use moe_core::ops::Weight;
use moe_core::{Elem, In, Op, Out, Scalar, ShapeError};
use std::marker::PhantomData;
use std::ptr::{from_mut, from_ref, null_mut};
use std::sync::atomic::Ordering;

/// An address on the GPU; 0 stands for an argument that is absent.
pub(crate) type Address = u64;

/// What kernels take: one struct, equal to its twin in `kernels/`.
///
/// # Safety
/// `#[repr(C)]`, of addresses and numbers, with the fields of the kernel's struct in its order.
pub(crate) unsafe trait Params: Copy {}

/// How many threads run a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    /// bytes of dynamic shared memory
    pub(crate) shared: u32,
    /// whether all blocks run at once or none, so that they may wait for each other
    pub(crate) together: bool,
}

impl Grid {
    pub(crate) fn new(blocks: usize, threads: u32) -> Self {
        Self::of([blocks, 1, 1], threads)
    }

    /// Ops bound their sizes so that the driver takes every number; one that is too large is the driver's error, not a smaller grid.
    pub(crate) fn of(blocks: [usize; 3], threads: u32) -> Self {
        let blocks = blocks.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        Self { blocks, threads, shared: 0, together: false }
    }

    pub(crate) fn shared(self, shared: u32) -> Self {
        Self { shared, ..self }
    }

    pub(crate) fn together(self) -> Self {
        Self { together: true, ..self }
    }

    /// What a launch needs to be told beside the sizes.
    fn attribute(&self) -> Option<CUlaunchAttribute> {
        if !self.together {
            return None;
        }
        // SAFETY: a struct of integers, for which zeros are valid.
        let mut attribute: CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
        attribute.value.cooperative = 1;
        Some(attribute)
    }
}

/// One launch of op `O`.
pub(crate) struct Call<'a, O> {
    pub(crate) cuda: &'a Cuda,
    work: Work<'a>,
    op: PhantomData<O>,
}

impl<'a, O: Op> Call<'a, O> {
    /// Checks the arguments, since anyone may call a kernel's `launch`.
    pub(crate) fn new(
        cuda: &'a Cuda,
        stream: &'a Stream,
        dims: &O::Dims,
        args: &O::Args<'_, Cuda>,
    ) -> Result<Self, CudaError> {
        O::check::<Cuda>(dims, args)?;
        if !cuda.context().is(&stream.0.context) {
            return Err(CudaError::OtherDevice { op: O::ID, what: "stream" });
        }
        Ok(Self { cuda, work: stream.work()?, op: PhantomData })
    }

    pub(crate) fn read<T: Elem>(
        &self,
        what: &'static str,
        view: In<'_, Cuda, T>,
    ) -> Result<Address, CudaError> {
        let (buffer, range) = view.parts();
        buffer.used(&self.work, O::ID, what, false)?;
        Ok(buffer.address(range.start))
    }

    pub(crate) fn write<T: Elem>(
        &self,
        what: &'static str,
        view: Out<'_, Cuda, T>,
    ) -> Result<Address, CudaError> {
        let (buffer, range) = view.parts();
        buffer.used(&self.work, O::ID, what, true)?;
        Ok(buffer.address(range.start))
    }

    pub(crate) fn read_some<T: Elem>(
        &self,
        what: &'static str,
        view: Option<In<'_, Cuda, T>>,
    ) -> Result<Address, CudaError> {
        view.map_or(Ok(0), |view| self.read(what, view))
    }

    pub(crate) fn write_some<T: Elem>(
        &self,
        what: &'static str,
        view: Option<Out<'_, Cuda, T>>,
    ) -> Result<Address, CudaError> {
        view.map_or(Ok(0), |view| self.write(what, view))
    }

    /// Weights as they are: this backend has no layout of its own.
    pub(crate) fn weight<T: Scalar>(
        &self,
        what: &'static str,
        weight: Weight<'_, Cuda, T>,
    ) -> Result<Address, CudaError> {
        match weight {
            Weight::Plain(plain) => self.read(what, plain),
            Weight::Packed(_) => {
                let why = "is packed, but this device reads weights as they are";
                Err(ShapeError::Combination { op: O::ID, what, why }.into())
            }
        }
    }

    /// Scratch memory of at least `want` bytes. It begins where a buffer could, so that kernels may lay out anything in it.
    pub(crate) fn scratch(&self, scratch: Out<'_, Cuda, u8>, want: usize) -> Result<Address, CudaError> {
        moe_core::within(O::ID, "scratch", want, usize::MAX, scratch.len())?;
        let address = self.write("scratch", scratch)?;
        if want > 0 && !address.is_multiple_of(16) {
            let why = "must begin at a multiple of 16 bytes";
            return Err(ShapeError::Combination { op: O::ID, what: "scratch", why }.into());
        }
        Ok(address)
    }

    /// Puts a kernel on the stream. An empty grid is no work.
    pub(crate) fn launch<P: Params>(
        &self,
        kernel: &'static str,
        grid: Grid,
        params: &P,
    ) -> Result<(), CudaError> {
        let function = self.cuda.function(kernel)?;
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let mut attribute = grid.attribute();
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.work.stream.0.raw,
            numAttrs: attribute.is_some().into(),
            attrs: attribute.as_mut().map_or(null_mut(), from_mut),
        };
        let mut arguments = [from_ref(params).cast_mut().cast()];
        // SAFETY: `Params` promises the struct that the kernel takes. Its addresses come from `read` and `write`: buffers that
        // live until their stream has done this work, with the lengths that the op's check has compared. Kernels
        // clamp what they read from buffers before they use it as an address.
        let code =
            unsafe { sys::cuLaunchKernelEx(&config, function.raw, arguments.as_mut_ptr(), null_mut()) };
        check(kernel, code)?;
        function.launches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
