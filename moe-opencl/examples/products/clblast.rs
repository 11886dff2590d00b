//! CLBlast, loaded at run time, with a context of its own on the same device.

use crate::{Result, fastest};
use libloading::{Library, Symbol};
use ocl::ffi::{self, cl_command_queue, cl_context, cl_event, cl_mem};
use std::ptr::{null, null_mut};

/// `CLBlastSgemm` of clblast_c.h.
type Sgemm = unsafe extern "C" fn(
    layout: i32,
    turn_left: i32,
    turn_right: i32,
    rows: usize,
    columns: usize,
    depth: usize,
    alpha: f32,
    left: cl_mem,
    left_start: usize,
    left_line: usize,
    right: cl_mem,
    right_start: usize,
    right_line: usize,
    beta: f32,
    out: cl_mem,
    out_start: usize,
    out_line: usize,
    queue: *mut cl_command_queue,
    event: *mut cl_event,
) -> i32;

const ROW_MAJOR: i32 = 101;
const AS_IT_LIES: i32 = 111;
const TURNED: i32 = 112;

pub(crate) struct Clblast {
    library: Library,
    context: cl_context,
    queue: cl_command_queue,
}

/// A buffer of floats; the process ends before anyone needs its memory again.
pub(crate) struct Memory(cl_mem);

/// An operand: lines of `line` floats from `start` on.
pub(crate) struct Side<'a> {
    pub(crate) buffer: &'a Memory,
    pub(crate) start: usize,
    pub(crate) line: usize,
    pub(crate) turned: bool,
}

fn check(code: i32) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(format!("OpenCL or CLBlast: code {code}").into()) }
}

impl Clblast {
    pub(crate) fn open(platform: usize, device: usize) -> Result<Self> {
        // SAFETY: loading CLBlast runs nothing but its own initialisation.
        let library = unsafe { Library::new("libclblast.so.1") }
            .map_err(|error| format!("no CLBlast (Debian: libclblast1): {error}"))?;
        let mut platforms = vec![null_mut(); platform + 1];
        let mut devices = vec![null_mut(); device + 1];
        let (mut context, mut queue, mut code) = (null_mut(), null_mut(), 0);
        // SAFETY: the lists have the room that is named; every handle comes from the call before.
        unsafe {
            check(ffi::clGetPlatformIDs(platforms.len() as u32, platforms.as_mut_ptr(), null_mut()))?;
            let (all, count) = (ffi::CL_DEVICE_TYPE_ALL, devices.len() as u32);
            check(ffi::clGetDeviceIDs(platforms[platform], all, count, devices.as_mut_ptr(), null_mut()))?;
            if !devices[device].is_null() {
                context = ffi::clCreateContext(null(), 1, &devices[device], None, null_mut(), &mut code);
            }
            check(code)?;
            if !context.is_null() {
                queue = ffi::clCreateCommandQueue(context, devices[device], 0, &mut code);
            }
            check(code)?;
        }
        Ok(Self { library, context, queue })
    }

    pub(crate) fn room(&self, len: usize) -> Result<Memory> {
        let mut code = 0;
        // SAFETY: no host memory is named.
        let raw = unsafe {
            ffi::clCreateBuffer(self.context, ffi::CL_MEM_READ_WRITE, len * 4, null_mut(), &mut code)
        };
        check(code).map(|()| Memory(raw))
    }

    pub(crate) fn upload(&self, values: &[f32]) -> Result<Memory> {
        let memory = self.room(values.len())?;
        let (bytes, from) = (size_of_val(values), values.as_ptr().cast());
        // SAFETY: the buffer has as many bytes; the call waits.
        let code = unsafe {
            ffi::clEnqueueWriteBuffer(
                self.queue,
                memory.0,
                ffi::CL_TRUE,
                0,
                bytes,
                from,
                0,
                null(),
                null_mut(),
            )
        };
        check(code).map(|()| memory)
    }

    pub(crate) fn download(&self, memory: &Memory, values: &mut [f32]) -> Result<()> {
        let (bytes, to) = (size_of_val(values), values.as_mut_ptr().cast());
        // SAFETY: the buffer has at least as many bytes; the call waits.
        let code = unsafe {
            ffi::clEnqueueReadBuffer(self.queue, memory.0, ffi::CL_TRUE, 0, bytes, to, 0, null(), null_mut())
        };
        check(code)
    }

    /// `out[start..] = left * right` for [rows, columns, depth].
    pub(crate) fn product(
        &self,
        [rows, columns, depth]: [usize; 3],
        left: Side<'_>,
        right: Side<'_>,
        (out, start, line): (&Memory, usize, usize),
    ) -> Result<()> {
        let turn = |side: &Side<'_>| if side.turned { TURNED } else { AS_IT_LIES };
        let mut queue = self.queue;
        // SAFETY: the signature is clblast_c.h's; all buffers are large enough for what is named of them.
        let code = unsafe {
            let sgemm: Symbol<'_, Sgemm> = self.library.get(b"CLBlastSgemm")?;
            sgemm(
                ROW_MAJOR,
                turn(&left),
                turn(&right),
                rows,
                columns,
                depth,
                1.0,
                left.buffer.0,
                left.start,
                left.line,
                right.buffer.0,
                right.start,
                right.line,
                0.0,
                out.0,
                start,
                line,
                &mut queue,
                null_mut(),
            )
        };
        check(code)
    }

    /// Seconds of the fastest run over all experts: `work(nth, first row, rows)`.
    pub(crate) fn best(
        &self,
        counts: &[usize],
        work: impl Fn(&Self, usize, usize, usize) -> Result<()>,
    ) -> Result<f64> {
        fastest(|| {
            let mut first = 0;
            for (nth, count) in counts.iter().enumerate() {
                work(self, nth, first, *count)?;
                first += count;
            }
            // SAFETY: the queue lives as long as `self`.
            check(unsafe { ffi::clFinish(self.queue) })
        })
    }
}
