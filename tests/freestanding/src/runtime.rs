//! The least that a program without libc needs on x86-64 Linux.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

// The kernel enters with the stack aligned to 16 bytes; a call pushes 8, as functions expect.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {start}", "ud2", start = sym start);

extern "C" fn start() -> ! {
    exit(crate::main())
}

/// Writes bytes to a file descriptor; what the kernel does not take is lost.
pub fn write(file: usize, bytes: &[u8]) {
    // SAFETY: the system call `write` reads `len` bytes at `ptr`, which the slice holds, and changes no memory; the
    // kernel overwrites rax, rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") 1usize => _, in("rdi") file, in("rsi") bytes.as_ptr(), in("rdx") bytes.len(),
            out("rcx") _, out("r11") _, options(nostack, readonly));
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: the system call `exit_group` ends the process.
    unsafe { asm!("syscall", in("rax") 231usize, in("rdi") code, options(noreturn, nostack)) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    write(2, b"panic\n");
    exit(101)
}

const HEAP: usize = 16 << 20;

#[repr(align(64))]
struct Bytes(UnsafeCell<[u8; HEAP]>);

/// Memory is handed out from the front and never taken back.
struct Arena {
    bytes: Bytes,
    used: AtomicUsize,
}

// SAFETY: `bytes` is touched only through ranges that `used` hands out, each once.
unsafe impl Sync for Arena {}

#[global_allocator]
static ARENA: Arena = Arena { bytes: Bytes(UnsafeCell::new([0; HEAP])), used: AtomicUsize::new(0) };

// SAFETY: a range is aligned as asked, lies inside `bytes` and is handed out once.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.bytes.0.get() as usize;
        let range = |used: usize| {
            let start = (base + used).checked_next_multiple_of(layout.align())? - base;
            let end = start.checked_add(layout.size())?;
            (end <= HEAP).then_some((start, end))
        };
        let next = |used| range(used).map(|(_, end)| end);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            // SAFETY: `next` found the same range inside `bytes`.
            Ok(used) => range(used).map_or(core::ptr::null_mut(), |(start, _)| unsafe {
                self.bytes.0.get().cast::<u8>().add(start)
            }),
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

// The memory functions that compiled code calls. They are string instructions, because the compiler would turn a loop into
// a call of the very function that it stands in.

/// # Safety
/// As C's memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for `len` bytes at both; the direction flag is clear by the calling convention.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's memmove.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: as memcpy; no byte is written before it was read, since `to` does not lie inside the source.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller vouches for `len` bytes at both; copied from the back, and the direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As C's memset.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for `len` bytes at `to`.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's memcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let (left, right): (u8, u8);
    if len == 0 {
        return 0;
    }
    // SAFETY: the caller vouches for `len` bytes at both; the instruction stops behind the first pair that differs, or
    // behind the last, and that pair is read again.
    unsafe {
        asm!("repe cmpsb", "mov {l}, byte ptr [rsi - 1]", "mov {r}, byte ptr [rdi - 1]",
            l = out(reg_byte) left, r = out(reg_byte) right,
            inout("rcx") len => _, inout("rsi") a => _, inout("rdi") b => _, options(nostack, readonly));
    }
    i32::from(left) - i32::from(right)
}

/// # Safety
/// As BSD's bcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the same demands.
    unsafe { memcmp(a, b, len) }
}

// Named by the precompiled `core` and `alloc`, never called: a panic ends the process.

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit(102)
}
