//! The library: found at run time, all functions looked up at once, so that a missing one is an error and not a crash later.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// Names under which the library is looked for, in this order. Only the second comes with NCCL's development package.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The first version whose communicators do not block, as the library counts: 10000 * major + 100 * minor + patch.
const OLDEST: c_int = 21403;

/// A communicator.
pub(super) type Handle = *mut c_void;

/// What a function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Code(c_int);

impl Code {
    pub(super) const SUCCESS: Self = Self(0);
    /// another rank or the way to it failed
    pub(super) const REMOTE: Self = Self(6);
    pub(super) const IN_PROGRESS: Self = Self(7);
}

/// What the ranks of a communicator find each other by.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// Settings of a communicator, as version 2.14 has them; newer libraries go by the version and take their defaults for the rest.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

impl Config {
    pub(super) fn without_blocking() -> Self {
        Self { size: size_of::<Self>(), magic: 0xcafe_beef, version: 21400, blocking: 0 }
    }
}

/// Why NCCL cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error(
        "NCCL was not found as {}; install it (Debian and Ubuntu: libnccl2 of NVIDIA's repository; pip: nvidia-nccl-cu13) and \
         put its folder into LD_LIBRARY_PATH if the loader does not know it",
        NAMES.join(" or ")
    )]
    Missing,
    #[error("the NCCL found has no {0}; install version 2.14.3 or newer")]
    Symbol(&'static str),
    #[error("the NCCL found is version {}.{}.{}; install version 2.14.3 or newer", .0 / 10000, .0 / 100 % 100, .0 % 100)]
    Old(c_int),
    #[error("NCCL could not be started: {0}")]
    Start(String),
}

macro_rules! functions {
    ($($name:ident = $symbol:literal($($argument:ty),*) -> $answer:ty;)*) => {
        /// NCCL's functions.
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $answer,)*
            /// keeps them loaded
            pub(super) _file: libloading::Library,
        }

        impl Library {
            /// For tests, which replace what they call.
            #[cfg(test)]
            pub(super) fn without_functions() -> Self {
                Self {
                    $($name: {
                        unsafe extern "C" fn missing($(_: $argument),*) -> $answer {
                            panic!("{} is not replaced", $symbol)
                        }
                        missing
                    },)*
                    _file: libloading::os::unix::Library::this().into(),
                }
            }

            fn resolve(file: libloading::Library) -> Result<Self, Unusable> {
                Ok(Self {
                    // SAFETY: these are the functions' types in nccl.h, the same from version 2.14 on.
                    $($name: *unsafe { file.get($symbol) }.map_err(|_| Unusable::Symbol($symbol))?,)*
                    _file: file,
                })
            }
        }
    };
}

functions! {
    get_version = "ncclGetVersion"(*mut c_int) -> Code;
    get_unique_id = "ncclGetUniqueId"(*mut UniqueId) -> Code;
    error_string = "ncclGetErrorString"(Code) -> *const c_char;
    last_error = "ncclGetLastError"(Handle) -> *const c_char;
    init_rank = "ncclCommInitRankConfig"(*mut Handle, c_int, UniqueId, c_int, *mut Config) -> Code;
    async_error = "ncclCommGetAsyncError"(Handle, *mut Code) -> Code;
    destroy = "ncclCommDestroy"(Handle) -> Code;
    abort = "ncclCommAbort"(Handle) -> Code;
    group_start = "ncclGroupStart"() -> Code;
    group_end = "ncclGroupEnd"() -> Code;
    all_reduce = "ncclAllReduce"(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Code;
    all_gather = "ncclAllGather"(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> Code;
    reduce_scatter = "ncclReduceScatter"(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Code;
    reduce = "ncclReduce"(*const c_void, *mut c_void, usize, c_int, c_int, c_int, Handle, *mut c_void) -> Code;
    broadcast = "ncclBroadcast"(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Code;
    send = "ncclSend"(*const c_void, usize, c_int, c_int, Handle, *mut c_void) -> Code;
    receive = "ncclRecv"(*mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> Code;
}

impl Library {
    /// The library, which is looked for once.
    pub(super) fn get() -> Result<&'static Self, Unusable> {
        static FOUND: OnceLock<Result<Library, Unusable>> = OnceLock::new();
        FOUND.get_or_init(|| Self::open(&NAMES)).as_ref().map_err(Clone::clone)
    }

    fn open(names: &[&str]) -> Result<Self, Unusable> {
        // SAFETY: NCCL's initialisers have no conditions.
        let open = |name: &&str| unsafe { libloading::Library::new(*name) }.ok();
        let library = Self::resolve(names.iter().find_map(open).ok_or(Unusable::Missing)?)?;
        let mut version = 0;
        // SAFETY: the pointer is valid.
        match unsafe { (library.get_version)(&mut version) } {
            Code::SUCCESS => recent(version).map(|()| library),
            code => Err(Unusable::Start(library.text(code))),
        }
    }

    /// A new id, for one rank to make and to send to the others.
    pub(super) fn unique_id(&self) -> Result<UniqueId, Unusable> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the pointer is valid.
        match unsafe { (self.get_unique_id)(&mut id) } {
            Code::SUCCESS => Ok(id),
            code => Err(Unusable::Start(self.text(code))),
        }
    }

    /// What the code means, and the last thing that NCCL complained of.
    pub(super) fn text(&self, code: Code) -> String {
        // SAFETY: both answer null or a string that stays; no communicator is needed for the last error.
        let [meaning, last] = unsafe { [(self.error_string)(code), (self.last_error)(std::ptr::null_mut())] }
            .map(|text| {
                // SAFETY: as above.
                let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
                text.map_or(String::new(), |text| text.to_string_lossy().trim().to_owned())
            });
        if last.is_empty() { format!("NCCL: {meaning}") } else { format!("NCCL: {meaning} ({last})") }
    }
}

fn recent(version: c_int) -> Result<(), Unusable> {
    if version < OLDEST { Err(Unusable::Old(version)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(names: &[&str]) -> Unusable {
        Library::open(names).err().expect("there is no such NCCL")
    }

    #[test]
    fn a_library_that_is_missing_is_an_error_that_says_what_to_install() {
        let error = refused(&["libnccl-of-nobody.so.2", "libnccl-of-nobody.so"]);
        assert_eq!(error, Unusable::Missing);
        let text = error.to_string();
        assert!(text.contains("not found as libnccl.so.2 or libnccl.so; install it"), "{text}");
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn a_library_without_the_functions_is_an_error_that_names_the_first() {
        let error = refused(&["libnccl-of-nobody.so.2", "libm.so.6"]);
        assert_eq!(error, Unusable::Symbol("ncclGetVersion"));
    }

    #[test]
    fn an_old_library_is_an_error_that_names_its_version() {
        assert_eq!(recent(22803), Ok(()));
        assert_eq!(recent(OLDEST), Ok(()));
        let text = recent(21304).unwrap_err().to_string();
        assert!(text.contains("version 2.13.4; install version 2.14.3"), "{text}");
    }
}
