//! Platforms and their devices, as the loader lists them, and what a device reports of itself.

use crate::error::{OpenClError, check};
use ocl::ffi::{self, c_void, cl_device_id, cl_int, cl_platform_id, size_t};
use std::fmt;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

/// A device that the loader knows, and where it stands in the lists.
#[derive(Clone, Debug)]
pub struct Listed {
    /// the platform's number
    pub platform: usize,
    /// the device's number in its platform
    pub device: usize,
    /// the platform's name
    pub platform_name: String,
    /// what the device reports
    pub facts: Facts,
    pub(crate) ids: Ids,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { platform, device, platform_name, facts, .. } = self;
        write!(f, "opencl:{platform}:{device}  {} ({}), {platform_name}", facts.name, facts.kind)
    }
}

/// A device's handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    pub(crate) platform: cl_platform_id,
    pub(crate) device: cl_device_id,
}

// SAFETY: handles of root devices, which live as long as the process and which any thread may use.
unsafe impl Send for Ids {}
// SAFETY: as above.
unsafe impl Sync for Ids {}

/// What sort of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// a processor
    Cpu,
    /// a graphics processor
    Gpu,
    /// anything else
    Other,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Gpu => "GPU",
            Self::Other => "accelerator",
        })
    }
}

/// What a device reports of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Facts {
    /// its name
    pub name: String,
    /// who made it
    pub vendor: String,
    /// version of its OpenCL
    pub version: String,
    /// version of its driver
    pub driver: String,
    /// names of its extensions, in one line
    pub extensions: String,
    /// what it is
    pub kind: DeviceKind,
    /// compute units
    pub units: usize,
    /// most work items of a group
    pub group: usize,
    /// bytes of local memory of a group
    pub local: usize,
    /// bytes of the largest buffer
    pub largest: u64,
    /// floats that it likes to work on together; 1 where work items are the lanes
    pub lanes: usize,
    /// sizes that a kernel can ask its subgroups to have (`cl_intel_required_subgroup_size`)
    pub subgroups: Vec<usize>,
    /// keeps subnormal f32
    pub subnormals: bool,
}

impl Facts {
    /// Whether the device has an extension of this name.
    pub fn has(&self, extension: &str) -> bool {
        self.extensions.split_whitespace().any(|name| name == extension)
    }

    fn of(device: cl_device_id) -> Result<Self, OpenClError> {
        let text = |key| device_info(device, key).map(text);
        let number = |key| device_info(device, key).map(number);
        let (kind, extensions) = (number(ffi::CL_DEVICE_TYPE)?, text(ffi::CL_DEVICE_EXTENSIONS)?);
        let floats = number(ffi::CL_DEVICE_SINGLE_FP_CONFIG)?;
        Ok(Self {
            name: text(ffi::CL_DEVICE_NAME)?,
            vendor: text(ffi::CL_DEVICE_VENDOR)?,
            version: text(ffi::CL_DEVICE_VERSION)?,
            driver: text(ffi::CL_DRIVER_VERSION)?,
            kind: match kind {
                kind if kind & ffi::CL_DEVICE_TYPE_GPU != 0 => DeviceKind::Gpu,
                kind if kind & ffi::CL_DEVICE_TYPE_CPU != 0 => DeviceKind::Cpu,
                _ => DeviceKind::Other,
            },
            units: number(ffi::CL_DEVICE_MAX_COMPUTE_UNITS)? as usize,
            group: number(ffi::CL_DEVICE_MAX_WORK_GROUP_SIZE)? as usize,
            local: number(ffi::CL_DEVICE_LOCAL_MEM_SIZE)? as usize,
            largest: number(ffi::CL_DEVICE_MAX_MEM_ALLOC_SIZE)?,
            lanes: number(ffi::CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT)? as usize,
            subgroups: if extensions.contains("cl_intel_required_subgroup_size") {
                numbers(&device_info(device, SUB_GROUP_SIZES_INTEL)?)
            } else {
                Vec::new()
            },
            extensions,
            subnormals: floats & ffi::CL_FP_DENORM != 0,
        })
    }
}

/// Every device of every platform, in the loader's order.
pub(crate) fn list() -> Result<Vec<Listed>, OpenClError> {
    // Not every loader bears to be woken by two threads at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut listed = Vec::new();
    for (platform, id) in platforms()?.into_iter().enumerate() {
        let name = text(platform_info(id, ffi::CL_PLATFORM_NAME)?);
        for (device, device_id) in devices(id)?.into_iter().enumerate() {
            listed.push(Listed {
                platform,
                device,
                platform_name: name.clone(),
                facts: Facts::of(device_id)?,
                ids: Ids { platform: id, device: device_id },
            });
        }
    }
    Ok(listed)
}

fn platforms() -> Result<Vec<cl_platform_id>, OpenClError> {
    let mut count = 0;
    // SAFETY: the pointer is valid; no list is asked for.
    match unsafe { ffi::clGetPlatformIDs(0, null_mut(), &mut count) } {
        ffi::CL_PLATFORM_NOT_FOUND_KHR => return Err(OpenClError::NoPlatform),
        code => check("clGetPlatformIDs", code)?,
    }
    if count == 0 {
        return Err(OpenClError::NoPlatform);
    }
    let mut ids = vec![null_mut(); count as usize];
    // SAFETY: the list has room for `count` handles.
    check("clGetPlatformIDs", unsafe { ffi::clGetPlatformIDs(count, ids.as_mut_ptr(), null_mut()) })?;
    Ok(ids)
}

fn devices(platform: cl_platform_id) -> Result<Vec<cl_device_id>, OpenClError> {
    let (all, mut count) = (ffi::CL_DEVICE_TYPE_ALL, 0);
    // SAFETY: the platform is the loader's own, the pointer is valid; no list is asked for.
    match unsafe { ffi::clGetDeviceIDs(platform, all, 0, null_mut(), &mut count) } {
        ffi::CL_DEVICE_NOT_FOUND => return Ok(Vec::new()),
        code => check("clGetDeviceIDs", code)?,
    }
    let mut ids = vec![null_mut(); count as usize];
    // SAFETY: the list has room for `count` handles.
    let code = unsafe { ffi::clGetDeviceIDs(platform, all, count, ids.as_mut_ptr(), null_mut()) };
    check("clGetDeviceIDs", code).map(|()| ids)
}

fn platform_info(platform: cl_platform_id, key: ffi::cl_platform_info) -> Result<Vec<u8>, OpenClError> {
    info("clGetPlatformInfo", |size, value, wanted| {
        // SAFETY: the platform is the loader's own; `info` passes room of `size` bytes.
        unsafe { ffi::clGetPlatformInfo(platform, key, size, value, wanted) }
    })
}

/// The version of the platform that a device belongs to.
pub(crate) fn platform_version(ids: Ids) -> Result<String, OpenClError> {
    platform_info(ids.platform, ffi::CL_PLATFORM_VERSION).map(text)
}

fn device_info(device: cl_device_id, key: ffi::cl_device_info) -> Result<Vec<u8>, OpenClError> {
    info("clGetDeviceInfo", |size, value, wanted| {
        // SAFETY: the device is the loader's own; `info` passes room of `size` bytes.
        unsafe { ffi::clGetDeviceInfo(device, key, size, value, wanted) }
    })
}

/// The bytes that an information call gives: it is asked for their number first.
pub(crate) fn info(
    call: &'static str,
    ask: impl Fn(size_t, *mut c_void, *mut size_t) -> cl_int,
) -> Result<Vec<u8>, OpenClError> {
    let mut size = 0;
    check(call, ask(0, null_mut(), &mut size))?;
    let mut bytes = vec![0_u8; size];
    check(call, ask(size, bytes.as_mut_ptr().cast(), null_mut()))?;
    Ok(bytes)
}

/// Text up to its closing zero.
pub(crate) fn text(bytes: Vec<u8>) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

/// `CL_DEVICE_SUB_GROUP_SIZES_INTEL`
const SUB_GROUP_SIZES_INTEL: ffi::cl_device_info = 0x4108;

/// Numbers of the host's word size.
fn numbers(bytes: &[u8]) -> Vec<usize> {
    bytes.chunks_exact(size_of::<usize>()).map(|word| number(word.to_vec()) as usize).collect()
}

/// A number of up to 64 bits in the host's order.
fn number(bytes: Vec<u8>) -> u64 {
    let mut all = [0; 8];
    let count = bytes.len().min(8);
    let place = if cfg!(target_endian = "big") { 8 - count } else { 0 };
    all[place..place + count].copy_from_slice(&bytes[..count]);
    u64::from_ne_bytes(all)
}
