//! The driver: found at run time, every call's answer checked.

use crate::error::CudaError;
use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdevice_attribute, CUresult};
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

/// Every function that this crate calls. One that is missing is an error at opening, not a panic later.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceCanAccessPeer",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventDestroy_v2",
    "cuMemPoolCreate",
    "cuMemPoolDestroy",
    "cuMemPoolSetAttribute",
    "cuMemPoolGetAttribute",
    "cuMemPoolSetAccess",
    "cuMemAllocFromPoolAsync",
    "cuMemFreeAsync",
    "cuMemsetD8Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuPointerGetAttribute",
    "cuTensorMapEncodeTiled",
];

/// Kernels are compiled by CUDA 13.0; a driver of that version or later runs them.
const VERSION: c_int = 13000;

/// Turns the driver's answer into a result. `call` names the function.
pub(crate) fn check(call: &'static str, code: CUresult) -> Result<(), CudaError> {
    use CUresult::{
        CUDA_ERROR_ECC_UNCORRECTABLE, CUDA_ERROR_HARDWARE_STACK_ERROR, CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_ILLEGAL_INSTRUCTION, CUDA_ERROR_INVALID_ADDRESS_SPACE, CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_TIMEOUT, CUDA_ERROR_MISALIGNED_ADDRESS, CUDA_SUCCESS,
    };
    match code {
        CUDA_SUCCESS => Ok(()),
        CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_MISALIGNED_ADDRESS => Err(CudaError::Fault { call, code }),
        code => Err(CudaError::Call { call, code }),
    }
}

/// Finds and starts the driver, once.
pub(crate) fn start() -> Result<(), CudaError> {
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.get().is_some() {
        return Ok(());
    }
    // SAFETY: only loads a library, which runs its initialisers.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    for symbol in SYMBOLS {
        // SAFETY: the library is there; the symbol is looked up, not called.
        let found = unsafe { sys::culib().get::<*const c_void>(symbol.as_bytes()).is_ok() };
        if !found {
            return Err(CudaError::Symbol { symbol });
        }
    }
    let mut found = 0;
    // SAFETY: the functions exist, the pointer is valid.
    unsafe {
        match sys::cuInit(0) {
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(CudaError::NoDevice { asked: 0, found: 0 }),
            code => check("cuInit", code)?,
        }
        check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut found))?;
    }
    if found < VERSION {
        return Err(CudaError::OldDriver { found });
    }
    STARTED.get_or_init(|| ());
    Ok(())
}

/// Number of devices.
pub(crate) fn count() -> Result<usize, CudaError> {
    match start() {
        Err(CudaError::NoDevice { .. }) => return Ok(0),
        started => started?,
    }
    let mut count = 0;
    // SAFETY: the driver is started, the pointer is valid.
    match unsafe { sys::cuDeviceGetCount(&mut count) } {
        CUresult::CUDA_ERROR_NO_DEVICE => Ok(0),
        code => check("cuDeviceGetCount", code).map(|()| count as usize),
    }
}

/// What the host wants to know of a device.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) major: i32,
    pub(crate) minor: i32,
    /// multiprocessors
    pub(crate) processors: u32,
    /// most bytes of shared memory that a block can ask for
    pub(crate) shared: u32,
    pub(crate) pools: bool,
    /// whether all blocks of a launch can be made to run at once
    pub(crate) cooperative: bool,
}

impl Facts {
    pub(crate) fn of(device: CUdevice) -> Result<Self, CudaError> {
        use CUdevice_attribute as Key;
        let attribute = |key| {
            let mut value = 0;
            // SAFETY: the device is the driver's own, the pointer is valid.
            check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, key, device) })
                .map(|()| value)
        };
        let mut name = [0; 128];
        // SAFETY: the driver writes at most the given number of bytes, the last of them 0.
        let name = unsafe {
            check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device))?;
            CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
        };
        Ok(Self {
            name,
            major: attribute(Key::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Key::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            processors: attribute(Key::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            shared: attribute(Key::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u32,
            pools: attribute(Key::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
            cooperative: attribute(Key::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
        })
    }
}

/// A device's primary context, which other CUDA code of the process shares.
pub(crate) struct Context {
    device: CUdevice,
    raw: CUcontext,
}

// SAFETY: a context may be current to any number of threads; the driver locks.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn open(ordinal: usize) -> Result<Self, CudaError> {
        let found = count()?;
        if ordinal >= found {
            return Err(CudaError::NoDevice { asked: ordinal, found });
        }
        let (mut device, mut raw) = (0, std::ptr::null_mut());
        // SAFETY: the driver is started, the pointers are valid.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, ordinal as c_int))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut raw, device))?;
        }
        Ok(Self { device, raw })
    }

    pub(crate) fn device(&self) -> CUdevice {
        self.device
    }

    /// Whether both are of one GPU.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.raw == other.raw
    }

    /// The other devices of this process that could read and write this one's memory.
    pub(crate) fn peers(&self) -> Result<Vec<CUdevice>, CudaError> {
        let mut peers = Vec::new();
        for ordinal in 0..count()? {
            let (mut peer, mut can) = (0, 0);
            // SAFETY: the driver is started, the pointers are valid, both devices are the driver's own.
            unsafe {
                check("cuDeviceGet", sys::cuDeviceGet(&mut peer, ordinal as c_int))?;
                if peer != self.device {
                    let code = sys::cuDeviceCanAccessPeer(&mut can, peer, self.device);
                    check("cuDeviceCanAccessPeer", code)?;
                }
            }
            if can != 0 {
                peers.push(peer);
            }
        }
        Ok(peers)
    }

    /// Makes the context current to this thread.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; nothing of this crate outlives it. A failure leaves nothing to do.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
