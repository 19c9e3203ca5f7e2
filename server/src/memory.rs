//! How this process's allocator deals with the system: glibc's, told to give back what it does not need.
//!
//! *Why:* by itself glibc makes eight arenas for each processor, and what a thread has freed in one stays with it; and once a large
//! block was freed it takes the next ones from the heap too, where they leave holes (sled takes buffers of eight mebibytes). Measured
//! on a node with many trees that was more than the trees. Another allocator is not: that would be a C library to build, for the same.
//!
//! Promises: nothing is decided by it; where there is no glibc, it does nothing.

/// glibc's own words for it; the libraries that we have do not say them.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;

    pub const TRIM_THRESHOLD: c_int = -1;
    pub const MMAP_THRESHOLD: c_int = -3;
    pub const ARENA_MAX: c_int = -8;

    unsafe extern "C" {
        /// 0: it does not know that.
        pub fn mallopt(what: c_int, value: c_int) -> c_int;
        /// 1: something was given back.
        pub fn malloc_trim(keep: usize) -> c_int;
    }
}

/// Larger blocks are the system's, and go back to it when they are freed. Said once, the limit does not grow by itself.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: std::ffi::c_int = 256 * 1024;
/// So much may lie free at a heap's end.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const AT_THE_END: std::ffi::c_int = 1024 * 1024;
/// Arenas, whatever the number of processors: about as many threads work at the same time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: std::ffi::c_int = 4;

/// Before any thread is started.
pub fn settle() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (what, value) in [(glibc::ARENA_MAX, ARENAS), (glibc::MMAP_THRESHOLD, LARGE), (glibc::TRIM_THRESHOLD, AT_THE_END)] {
        // SAFETY: it takes two numbers, and changes how later blocks are taken.
        let known = unsafe { glibc::mallopt(what, value) };
        debug_assert_eq!(known, 1, "mallopt({what})");
    }
}

/// After much was freed in small blocks. Takes milliseconds: not on a task.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, and gives free pages back; blocks in use stay where they are.
    unsafe {
        glibc::malloc_trim(0);
    }
}
