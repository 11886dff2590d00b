//! Kernels: compiled for every architecture before the crate is published, embedded, loaded when the device is opened.

use crate::driver::{Context, Facts, check};
use crate::error::CudaError;
use crate::ops::IMAGES;
use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute};
use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::ptr::null_mut;
use std::sync::atomic::AtomicU64;

/// One file of `kernels/`, compiled: machine code for several architectures, of which the driver takes what fits.
pub(crate) struct Image {
    pub(crate) code: &'static [u8],
    /// its kernels, and the most bytes of dynamic shared memory that each asks for
    pub(crate) kernels: &'static [(&'static str, u32)],
    /// whether it holds Hopper's own instructions, which no other architecture has
    pub(crate) hopper: bool,
}

/// Embeds `images/NAME.fatbin`, the compiled `kernels/NAME.cu`. Each kernel named stands for three, one per storage type,
/// and each of `single` for itself; the number is the most bytes of dynamic shared memory.
macro_rules! image {
    ($name:literal, [$($kernel:literal: $shared:expr),* $(,)?] $(, single: [$($one:literal: $room:expr),* $(,)?])?) => {
        $crate::image::Image {
            code: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/images/", $name, ".fatbin")),
            kernels: &[
                $(
                    (concat!($kernel, "_f32"), $shared),
                    (concat!($kernel, "_bf16"), $shared),
                    (concat!($kernel, "_f16"), $shared),
                )*
                $($(($one, $room),)*)?
            ],
            hopper: false,
        }
    };
}
pub(crate) use image;

/// The name of kernel `$name` for storage type `$t`.
macro_rules! kernel {
    ($t:ty, $name:expr) => {
        match <$t as moe_core::Elem>::DTYPE {
            moe_core::DType::Bf16 => concat!($name, "_bf16"),
            moe_core::DType::F16 => concat!($name, "_f16"),
            _ => concat!($name, "_f32"),
        }
    };
}
pub(crate) use kernel;

/// A loaded kernel.
pub(crate) struct Function {
    pub(crate) raw: CUfunction,
    /// how often it was launched
    pub(crate) launches: AtomicU64,
}

// SAFETY: a handle into a module that is never unloaded while its context lives.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Loads every kernel that this device can run, so that no launch has to: not those that want more shared memory than it has.
pub(crate) fn load(context: &Context, facts: &Facts) -> Result<HashMap<&'static str, Function>, CudaError> {
    context.bind()?;
    let mut functions = HashMap::new();
    let hopper = facts.major == 9;
    for image in IMAGES.iter().filter(|image| hopper || !image.hopper) {
        let mut module = null_mut();
        // SAFETY: a context is current, the image is a whole fatbin, which tells its own length.
        let code = unsafe { sys::cuModuleLoadData(&mut module, image.code.as_ptr().cast()) };
        check("cuModuleLoadData", code)?;
        for &(name, shared) in image.kernels.iter().filter(|(_, shared)| *shared <= facts.shared) {
            let mut function = null_mut();
            let symbol = CString::new(name).unwrap_or_default();
            // SAFETY: the module was just loaded, the name ends in 0, the pointer is valid.
            let code = unsafe { sys::cuModuleGetFunction(&mut function, module, symbol.as_ptr()) };
            check("cuModuleGetFunction", code)?;
            if shared > 48 << 10 {
                let key = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function was just found.
                let code = unsafe { sys::cuFuncSetAttribute(function, key, shared as c_int) };
                check("cuFuncSetAttribute", code)?;
            }
            functions.insert(name, Function { raw: function, launches: AtomicU64::new(0) });
        }
    }
    Ok(functions)
}
