//! Call: an op's arguments, and the launch of its kernels.

use crate::device::OpenCl;
use crate::error::{OpenClError, check};
use crate::order::Work;
use crate::program::{Program, Source};
use crate::stream::Stream;
use crate::way::Way;
use moe_core::ops::Weight;
use moe_core::{DType, Elem, In, Op, Out, Scalar, ShapeError};
use ocl::ffi::{self, c_void, cl_mem};
use std::marker::PhantomData;
use std::ptr::{from_ref, null, null_mut};

/// A buffer, and the element from which on a kernel may use it. It is two of the kernel's arguments: `IN` or `OUT` in `kernels/`.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    buffer: cl_mem,
    start: u64,
}

impl Place {
    /// An argument that is absent.
    pub(crate) const NONE: Self = Self { buffer: null_mut(), start: 0 };

    /// The place `elements` further on.
    pub(crate) fn after(self, elements: usize) -> Self {
        Self { start: self.start + elements as u64, ..self }
    }
}

/// Scratch memory of a launch.
#[derive(Clone, Copy)]
pub(crate) struct Scratch(Place);

impl Scratch {
    /// As elements of type `T`.
    pub(crate) fn of<T>(self) -> Place {
        Place { start: self.0.start / size_of::<T>() as u64, ..self.0 }
    }
}

/// The numbers that a kernel takes: one struct, its last argument, equal to its twin in `kernels/`.
///
/// # Safety
/// `#[repr(C)]`, of numbers without padding, with the fields of the kernel's struct in its order.
pub(crate) unsafe trait Params: Copy {}

/// How many work items run a kernel.
#[derive(Clone, Copy)]
pub(crate) struct Grid {
    groups: [usize; 2],
    threads: [usize; 2],
}

impl Grid {
    pub(crate) fn new(groups: usize, threads: usize) -> Self {
        Self { groups: [groups, 1], threads: [threads, 1] }
    }

    pub(crate) fn of(groups: [usize; 2], threads: [usize; 2]) -> Self {
        Self { groups, threads }
    }
}

/// One launch of op `O`.
pub(crate) struct Call<'a, O> {
    program: &'a Program,
    work: Work<'a>,
    op: PhantomData<O>,
}

impl<'a, O: Op> Call<'a, O> {
    /// Checks the arguments, since anyone may call a kernel's `launch`. `storage` is one of the source's types.
    pub(crate) fn new(
        device: &'a OpenCl,
        stream: &'a Stream,
        program: (&Source, DType),
        dims: &O::Dims,
        args: &O::Args<'_, OpenCl>,
    ) -> Result<Self, OpenClError> {
        Self::on_way(device, stream, program, None, dims, args)
    }

    /// As `new`, for a grouped product that is computed this way.
    pub(crate) fn on_way(
        device: &'a OpenCl,
        stream: &'a Stream,
        (source, storage): (&Source, DType),
        way: Option<Way>,
        dims: &O::Dims,
        args: &O::Args<'_, OpenCl>,
    ) -> Result<Self, OpenClError> {
        O::check::<OpenCl>(dims, args)?;
        if !device.context().is(&stream.0.context) {
            return Err(OpenClError::OtherDevice { op: O::ID, what: "stream" });
        }
        let program = device.program(source, storage, way)?;
        Ok(Self { program, work: stream.work(), op: PhantomData })
    }

    /// What is launched from now on is of another program.
    pub(crate) fn turn_to(
        &mut self,
        device: &'a OpenCl,
        (source, storage): (&Source, DType),
    ) -> Result<(), OpenClError> {
        self.program = device.program(source, storage, None)?;
        Ok(())
    }

    pub(crate) fn read<T: Elem>(
        &self,
        what: &'static str,
        view: In<'_, OpenCl, T>,
    ) -> Result<Place, OpenClError> {
        let (buffer, range) = view.parts();
        buffer.used(&self.work, O::ID, what, false)?;
        Ok(Place { buffer: buffer.raw, start: range.start as u64 })
    }

    pub(crate) fn write<T: Elem>(
        &self,
        what: &'static str,
        view: Out<'_, OpenCl, T>,
    ) -> Result<Place, OpenClError> {
        let (buffer, range) = view.parts();
        buffer.used(&self.work, O::ID, what, true)?;
        Ok(Place { buffer: buffer.raw, start: range.start as u64 })
    }

    pub(crate) fn read_some<T: Elem>(
        &self,
        what: &'static str,
        view: Option<In<'_, OpenCl, T>>,
    ) -> Result<Place, OpenClError> {
        view.map_or(Ok(Place::NONE), |view| self.read(what, view))
    }

    pub(crate) fn write_some<T: Elem>(
        &self,
        what: &'static str,
        view: Option<Out<'_, OpenCl, T>>,
    ) -> Result<Place, OpenClError> {
        view.map_or(Ok(Place::NONE), |view| self.write(what, view))
    }

    /// Weights as they are: this backend has no layout of its own.
    pub(crate) fn weight<T: Scalar>(
        &self,
        what: &'static str,
        weight: Weight<'_, OpenCl, T>,
    ) -> Result<Place, OpenClError> {
        match weight {
            Weight::Plain(plain) => self.read(what, plain),
            Weight::Packed(_) => {
                let why = "is packed, but this device reads weights as they are";
                Err(ShapeError::Combination { op: O::ID, what, why }.into())
            }
        }
    }

    /// Scratch memory of at least `want` bytes. It begins where a buffer could, so that kernels may lay out anything in it.
    pub(crate) fn scratch(&self, scratch: Out<'_, OpenCl, u8>, want: usize) -> Result<Scratch, OpenClError> {
        moe_core::within(O::ID, "scratch", want, usize::MAX, scratch.len())?;
        let place = self.write("scratch", scratch)?;
        if want > 0 && !place.start.is_multiple_of(16) {
            let why = "must begin at a multiple of 16 bytes";
            return Err(ShapeError::Combination { op: O::ID, what: "scratch", why }.into());
        }
        Ok(Scratch(place))
    }

    /// Puts a kernel on the stream. An empty grid is no work.
    pub(crate) fn launch<P: Params>(
        &self,
        kernel: &'static str,
        grid: Grid,
        places: &[Place],
        params: &P,
    ) -> Result<(), OpenClError> {
        if grid.groups.contains(&0) {
            return Ok(());
        }
        let global = [grid.groups[0] * grid.threads[0], grid.groups[1] * grid.threads[1]];
        self.work.stream.with_kernel(self.program, kernel, |object| {
            let mut at = 0;
            let mut set = |size: usize, value: *const c_void| {
                // SAFETY: the value has this size, and is copied. The driver refuses what does not fit the kernel's signature.
                let code = unsafe { ffi::clSetKernelArg(object.0, at, size, value) };
                at += 1;
                check(kernel, code)
            };
            for place in places {
                set(size_of::<cl_mem>(), from_ref(&place.buffer).cast())?;
                set(size_of::<u64>(), from_ref(&place.start).cast())?;
            }
            set(size_of::<P>(), from_ref(params).cast())?;
            let (global, local) = (global.as_ptr(), grid.threads.as_ptr());
            // SAFETY: `Params` promises the struct that the kernel takes. Its places come from `read` and `write`: buffers that
            // live until their stream has done this work, with the lengths that the op's check has compared. Kernels clamp what
            // they read from buffers before they use it as an index.
            let code = unsafe {
                let queue = self.work.stream.0.raw;
                ffi::clEnqueueNDRangeKernel(queue, object.0, 2, null(), global, local, 0, null(), null_mut())
            };
            check(kernel, code)
        })
    }
}
