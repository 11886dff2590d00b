//! Programs: the kernels' sources, embedded, and built for a device when they are first needed.

use crate::cache::Cache;
use crate::context::Context;
use crate::error::{OpenClError, check};
use crate::ops::SOURCES;
use crate::order::locked;
use crate::platform::{Facts, info, text};
use crate::way::{Way, Ways};
use moe_core::DType;
use ocl::ffi::{self, cl_kernel, cl_program};
use std::collections::HashMap;
use std::ffi::CString;
use std::fmt::{self, Write};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// One op's file of `kernels/`, behind what it includes.
pub(crate) struct Source {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    /// for grouped products, what stands before the files of a [`Way`]; `text` stands behind them
    pub(crate) before_way: Option<&'static str>,
    /// storage types that it is built for; one, if it holds no elements
    pub(crate) storage: &'static [DType],
}

/// Storage types of programs that hold elements, in the order of their numbers in `kernels/prelude.cl`.
pub(crate) const FLOATS: &[DType] = &[DType::F32, DType::Bf16, DType::F16];
/// Of programs that hold none.
pub(crate) const NO_STORAGE: &[DType] = &[DType::U32];

/// Embeds `kernels/NAME.cl` behind the prelude and the shared files named; `in $storage` lists its storage types.
macro_rules! source {
    ($name:literal, [$($shared:literal),*], $storage:expr) => {
        $crate::program::Source {
            name: $name,
            text: concat!(
                "#line 1 \"prelude.cl\"\n", include_str!("../../kernels/prelude.cl"),
                $("#line 1 \"", $shared, ".cl\"\n", include_str!(concat!("../../kernels/", $shared, ".cl")),)*
                "#line 1 \"", $name, ".cl\"\n", include_str!(concat!("../../kernels/", $name, ".cl")),
            ),
            before_way: None,
            storage: $storage,
        }
    };
}
pub(crate) use source;

/// Embeds `kernels/NAME.cl`, a grouped product, behind the shared files named.
macro_rules! product {
    ($name:literal, [$($shared:literal),*]) => {
        $crate::program::Source {
            name: $name,
            before_way: Some(concat!(
                "#line 1 \"prelude.cl\"\n", include_str!("../../kernels/prelude.cl"),
                "#line 1 \"lanes.cl\"\n", include_str!("../../kernels/lanes.cl"),
                "#line 1 \"product.cl\"\n", include_str!("../../kernels/product.cl"),
            )),
            text: concat!(
                $("#line 1 \"", $shared, ".cl\"\n", include_str!(concat!("../../kernels/", $shared, ".cl")),)*
                "#line 1 \"", $name, ".cl\"\n", include_str!(concat!("../../kernels/", $name, ".cl")),
            ),
            storage: $crate::program::FLOATS,
        }
    };
}
pub(crate) use product;

impl Source {
    /// The variants that a device needs for a storage type: one, or one for each way of its products.
    pub(crate) fn variants(&'static self, storage: DType, ways: &Ways) -> Vec<Variant> {
        let variant = |way| Variant { source: self, storage, way };
        match self.before_way {
            _ if !self.storage.contains(&storage) => Vec::new(),
            None => vec![variant(None)],
            Some(_) => ways.of(storage).map(|way| variant(Some(way))).collect(),
        }
    }
}

/// A source as it is compiled once.
#[derive(Clone, Copy)]
pub(crate) struct Variant {
    source: &'static Source,
    storage: DType,
    way: Option<Way>,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.source.name, self.storage)?;
        self.way.map_or(Ok(()), |way| write!(f, "-{}", way.path().0.replace(' ', "-")))
    }
}

impl Variant {
    fn key(&self) -> Key {
        (self.source.name, self.storage, self.way)
    }

    /// All of its text.
    pub(crate) fn text(&self) -> String {
        let way = self.way.map_or("", Way::text);
        [self.source.before_way.unwrap_or(""), way, self.source.text].concat()
    }

    /// What the compiler is told, from what the device reports.
    pub(crate) fn options(&self, facts: &Facts) -> String {
        // Block reads and matrix units come with OpenCL C as the driver has it.
        let standard = if matches!(self.way, Some(Way::Subgroup { .. } | Way::Matrix { .. })) {
            ""
        } else {
            "-cl-std=CL1.2 "
        };
        let mut options = format!("{standard}-DTHREADS={}", crate::ops::threads(facts));
        let number = FLOATS.iter().position(|float| *float == self.storage).unwrap_or(0);
        let _ = write!(options, " -DSTORAGE={number}");
        options + &self.way.map_or(String::new(), |way| way.options(facts))
    }
}

/// A built program.
pub(crate) struct Program {
    pub(crate) key: Key,
    raw: cl_program,
}

// SAFETY: OpenCL takes calls for a program from any thread.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

impl Program {
    /// A kernel object, with arguments of its own.
    pub(crate) fn kernel(&self, name: &'static str) -> Result<Kernel, OpenClError> {
        let symbol = CString::new(name).unwrap_or_default();
        let mut code = 0;
        // SAFETY: the program is built, the name ends in 0, the pointer is valid.
        let raw = unsafe { ffi::clCreateKernel(self.raw, symbol.as_ptr(), &mut code) };
        check("clCreateKernel", code).map(|()| Kernel(raw))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created in `made`; kernels keep what they need. A failure leaves nothing to do.
        let _ = unsafe { ffi::clReleaseProgram(self.raw) };
    }
}

/// A kernel object.
pub(crate) struct Kernel(pub(crate) cl_kernel);

// SAFETY: OpenCL takes calls from any thread, but for one object one at a time: a stream keeps it behind a lock.
unsafe impl Send for Kernel {}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: created in `Program::kernel`. A failure leaves nothing to do.
        let _ = unsafe { ffi::clReleaseKernel(self.0) };
    }
}

/// Name, storage type, and the way of a grouped product.
pub(crate) type Key = (&'static str, DType, Option<Way>);

/// A device's programs. Those of a storage type are built together when it is first used.
pub(crate) struct Programs {
    cache: Cache,
    ways: Ways,
    built: [OnceLock<HashMap<Key, Program>>; STORED.len()],
    building: Mutex<()>,
}

/// All storage types of programs.
const STORED: [DType; 4] = [DType::F32, DType::Bf16, DType::F16, DType::U32];

impl Programs {
    pub(crate) fn new(cache: Cache, ways: Ways) -> Self {
        Self { cache, ways, built: Default::default(), building: Mutex::default() }
    }

    pub(crate) fn ways(&self) -> &Ways {
        &self.ways
    }

    pub(crate) fn get(&self, context: &Context, key: &Key) -> Result<&Program, OpenClError> {
        let missing = || OpenClError::Lacks { name: context.listed.facts.name.clone(), what: key.0 };
        let at = STORED.iter().position(|stored| *stored == key.1).ok_or_else(missing)?;
        if self.built[at].get().is_none() {
            let _one_at_a_time = locked(&self.building);
            if self.built[at].get().is_none() {
                let _ = self.built[at].set(self.build_all(context, key.1)?);
            }
        }
        self.built[at].get().and_then(|programs| programs.get(key)).ok_or_else(missing)
    }

    /// On all processors, since a compiler takes its time.
    fn build_all(&self, context: &Context, storage: DType) -> Result<HashMap<Key, Program>, OpenClError> {
        let of_source = |source: &&'static Source| source.variants(storage, &self.ways);
        let all: Vec<Variant> = SOURCES.iter().flat_map(of_source).collect();
        let (next, built) = (AtomicUsize::new(0), Mutex::new(Ok(HashMap::new())));
        let work = || {
            while let Some(variant) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                let program = build(context, &self.cache, variant);
                let mut built = locked(&built);
                match (built.as_mut(), program) {
                    (Ok(programs), Ok(program)) => {
                        programs.insert(variant.key(), program);
                    }
                    (Ok(_), Err(error)) => *built = Err(error),
                    (Err(_), _) => return,
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        built.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn build(context: &Context, cache: &Cache, variant: &Variant) -> Result<Program, OpenClError> {
    let (text, options) = (variant.text(), variant.options(&context.listed.facts));
    let key = cache.key(&text, &options);
    let stored = cache.load(&key).and_then(|binary| from_binary(context, &binary, &options).ok());
    if let Some(raw) = stored {
        return Ok(Program { key: variant.key(), raw });
    }
    let program = Program { key: variant.key(), raw: from_source(context, &text)? };
    if let Err(error) = compile(context, program.raw, &options) {
        return match error {
            OpenClError::Call { code, .. } if code.0 == ffi::CL_BUILD_PROGRAM_FAILURE => {
                let (name, log) = (context.listed.facts.name.clone(), log(context, program.raw));
                Err(OpenClError::Build { program: variant.source.name, name, log })
            }
            error => Err(error),
        };
    }
    // A cache that cannot be written is no error: the next start compiles again.
    if let Ok(binary) = binary(program.raw) {
        cache.store(&key, &binary);
    }
    Ok(program)
}

fn from_source(context: &Context, source: &str) -> Result<cl_program, OpenClError> {
    let (text, length, mut code) = (source.as_ptr().cast(), source.len(), 0);
    // SAFETY: the text has this length, the pointers are valid.
    let raw = unsafe { ffi::clCreateProgramWithSource(context.raw, 1, &text, &length, &mut code) };
    check("clCreateProgramWithSource", code).map(|()| raw)
}

fn from_binary(context: &Context, binary: &[u8], options: &str) -> Result<cl_program, OpenClError> {
    let (device, length, bytes) = (context.listed.ids.device, binary.len(), binary.as_ptr());
    let (mut status, mut code) = (0, 0);
    // SAFETY: one device, one binary of this length; the pointers are valid.
    let raw = unsafe {
        ffi::clCreateProgramWithBinary(context.raw, 1, &device, &length, &bytes, &mut status, &mut code)
    };
    check("clCreateProgramWithBinary", code)?;
    check("clCreateProgramWithBinary", status).and_then(|()| compile(context, raw, options)).map(|()| raw)
}

fn compile(context: &Context, program: cl_program, options: &str) -> Result<(), OpenClError> {
    let options = CString::new(options).unwrap_or_default();
    let device = context.listed.ids.device;
    // SAFETY: the program is of this context, the options end in 0, and the call waits for the end.
    let code = unsafe { ffi::clBuildProgram(program, 1, &device, options.as_ptr(), None, null_mut()) };
    check("clBuildProgram", code)
}

fn log(context: &Context, program: cl_program) -> String {
    let bytes = info("clGetProgramBuildInfo", |size, value, wanted| {
        let (device, key) = (context.listed.ids.device, ffi::CL_PROGRAM_BUILD_LOG);
        // SAFETY: the program is of this device; `info` passes room of `size` bytes.
        unsafe { ffi::clGetProgramBuildInfo(program, device, key, size, value, wanted) }
    });
    bytes.map_or_else(|error| error.to_string(), text)
}

/// The machine code, in the driver's own form.
fn binary(program: cl_program) -> Result<Vec<u8>, OpenClError> {
    let mut size = 0_usize;
    // SAFETY: the program has one device, so the answer is one size.
    let code = unsafe {
        let (key, room) = (ffi::CL_PROGRAM_BINARY_SIZES, size_of::<usize>());
        ffi::clGetProgramInfo(program, key, room, (&raw mut size).cast(), null_mut())
    };
    check("clGetProgramInfo", code)?;
    let mut bytes = vec![0_u8; size];
    let mut places = [bytes.as_mut_ptr()];
    // SAFETY: the program has one device, so the answer is one binary of `size` bytes, written where the place says.
    let code = unsafe {
        let (key, room) = (ffi::CL_PROGRAM_BINARIES, size_of_val(&places));
        ffi::clGetProgramInfo(program, key, room, places.as_mut_ptr().cast(), null_mut())
    };
    check("clGetProgramInfo", code).map(|()| bytes)
}
