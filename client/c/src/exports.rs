//! The functions of `include/emberfs.h`, which documents them: pointers become references here.

// Each function's contract is in the header: pointers are NULL or valid for what they say.
#![allow(clippy::missing_safety_doc, reason = "the header is the contract")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;

use crate::abi::{ABI_VERSION, Cqe, MAX_ENTRIES, Options, Sqe, Stat};
use crate::error::{Failure, Result, guard, last};
use crate::memory::Region;
use crate::{client, ring};

/// # Safety
/// `pointer` is NULL or a string that outlives `'a`.
unsafe fn text<'a>(pointer: *const c_char, what: &str) -> Result<&'a str> {
    if pointer.is_null() {
        return Err(Failure::invalid(format!("{what} is NULL")));
    }
    // SAFETY: not NULL, so a string, by this function's contract.
    let text = unsafe { CStr::from_ptr(pointer) };
    let text = text.to_str();
    text.map_err(|_| Failure::invalid(format!("{what} is not UTF-8")))
}

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `pointer` is NULL or writable.
unsafe fn put(pointer: *mut u64, work: impl FnOnce() -> Result<u64>) -> Result<i64> {
    if pointer.is_null() {
        return Err(Failure::invalid("the place for the new handle is NULL"));
    }
    let handle = work()?;
    // SAFETY: not NULL, so writable, by this function's contract.
    unsafe { pointer.write_unaligned(handle) };
    Ok(0)
}

/// The caller's `size` field is the first; its struct may be of another version.
///
/// # Safety
/// `pointer` is NULL or as many readable bytes as its first `u32` says.
unsafe fn options(pointer: *const Options) -> Result<Options> {
    let mut known = Options::default();
    if pointer.is_null() {
        return Ok(known);
    }
    // SAFETY: a struct that is not NULL has at least its size field, by this function's contract.
    let size = unsafe { pointer.cast::<u32>().read_unaligned() } as usize;
    if size != size_of::<Options>() {
        let ours = size_of::<Options>();
        return Err(Failure::invalid(format!(
            "options.size is {size}, this version knows {ours}: set it to sizeof(struct emberfs_options)"
        )));
    }
    // SAFETY: `size` bytes are readable, by this function's contract, and every pattern is valid.
    known = unsafe { pointer.read_unaligned() };
    Ok(known)
}

/// # Safety
/// `buffer` is NULL or has `length` bytes that are the callee's during the call.
unsafe fn region(buffer: *mut c_void, length: usize) -> Result<Region> {
    // SAFETY: the contract is passed on.
    unsafe { Region::new(buffer.cast(), length) }
}

#[unsafe(no_mangle)]
/// `emberfs_abi_version`
pub extern "C" fn emberfs_abi_version() -> u32 {
    ABI_VERSION
}

#[unsafe(no_mangle)]
/// `emberfs_last_error`
pub extern "C" fn emberfs_last_error() -> *const c_char {
    last()
}

#[unsafe(no_mangle)]
/// `emberfs_connect`
pub unsafe extern "C" fn emberfs_connect(
    address: *const c_char,
    options_: *const Options,
    client_: *mut u64,
) -> c_int {
    guard("emberfs_connect", || {
        // SAFETY: the header's contract for each pointer.
        let (address, options) = unsafe { (text(address, "address")?, options(options_)?) };
        // SAFETY: as above.
        unsafe { put(client_, || client::connect(address, &options)) }
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_disconnect`
pub extern "C" fn emberfs_disconnect(client_: u64) -> c_int {
    guard("emberfs_disconnect", || {
        client::disconnect(client_).map(|()| 0)
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_open`
pub unsafe extern "C" fn emberfs_open(
    client_: u64,
    path: *const c_char,
    flags: c_int,
    mode: u32,
    file: *mut u64,
) -> c_int {
    guard("emberfs_open", || {
        // SAFETY: the header's contract.
        let path = unsafe { text(path, "path")? };
        // SAFETY: the header's contract.
        unsafe { put(file, || client::open(client_, path, flags, mode)) }
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_close`
pub extern "C" fn emberfs_close(file: u64) -> c_int {
    guard("emberfs_close", || client::close(file).map(|()| 0)) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_stat`
pub unsafe extern "C" fn emberfs_stat(client_: u64, path: *const c_char, stat: *mut Stat) -> c_int {
    guard("emberfs_stat", || {
        // SAFETY: the header's contract.
        let path = unsafe { text(path, "path")? };
        if stat.is_null() {
            return Err(Failure::invalid("stat is NULL"));
        }
        // SAFETY: not NULL, so at least the size field is there.
        let size = unsafe { stat.cast::<u32>().read_unaligned() } as usize;
        if size != size_of::<Stat>() {
            return Err(Failure::invalid(format!(
                "stat.size is {size}: set it to sizeof(struct emberfs_stat)"
            )));
        }
        let found = client::stat(client_, path)?;
        // SAFETY: the caller says that a whole struct is there.
        unsafe { stat.write_unaligned(found) };
        Ok(0)
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_pread`
pub unsafe extern "C" fn emberfs_pread(
    file: u64,
    buffer: *mut c_void,
    length: usize,
    offset: u64,
) -> i64 {
    guard("emberfs_pread", || {
        if length == 0 {
            return client::FILES.get(file).map(|_| 0);
        }
        // SAFETY: the header's contract; the region ends with the call.
        let region = unsafe { region(buffer, length)? };
        client::pread(file, &region, offset)
    })
}

#[unsafe(no_mangle)]
/// `emberfs_pwrite`
pub unsafe extern "C" fn emberfs_pwrite(
    file: u64,
    buffer: *const c_void,
    length: usize,
    offset: u64,
) -> i64 {
    guard("emberfs_pwrite", || {
        if length == 0 {
            return client::FILES.get(file).map(|_| 0);
        }
        // SAFETY: the header's contract; the region ends with the call and is only read.
        let region = unsafe { region(buffer.cast_mut(), length)? };
        client::pwrite(file, &region, offset)
    })
}

#[unsafe(no_mangle)]
/// `emberfs_fsync`
pub extern "C" fn emberfs_fsync(file: u64) -> c_int {
    guard("emberfs_fsync", || client::fsync(file).map(|()| 0)) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_ring_create`
pub unsafe extern "C" fn emberfs_ring_create(client_: u64, entries: u32, ring_: *mut u64) -> c_int {
    guard("emberfs_ring_create", || {
        // SAFETY: the header's contract.
        unsafe { put(ring_, || ring::create(client_, entries)) }
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_ring_register`
pub unsafe extern "C" fn emberfs_ring_register(
    ring_: u64,
    address: *mut c_void,
    length: usize,
) -> c_int {
    guard("emberfs_ring_register", || {
        // SAFETY: the header's contract: the memory stays until it is unregistered or the ring is destroyed,
        // and neither happens while an operation uses it.
        ring::register(ring_, unsafe { region(address, length)? })
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_ring_unregister`
pub extern "C" fn emberfs_ring_unregister(ring_: u64, buffer: u32) -> c_int {
    guard("emberfs_ring_unregister", || {
        ring::unregister(ring_, buffer).map(|()| 0)
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_ring_submit`
pub unsafe extern "C" fn emberfs_ring_submit(ring_: u64, entries: *const Sqe, count: u32) -> c_int {
    guard("emberfs_ring_submit", || {
        if count == 0 {
            return ring::submit(ring_, &[]);
        }
        if entries.is_null() || !entries.is_aligned() {
            return Err(Failure::invalid("entries is NULL or not aligned"));
        }
        // No ring takes more.
        let count = count.min(MAX_ENTRIES) as usize;
        // SAFETY: not NULL, aligned, and by the header's contract `count` entries.
        ring::submit(ring_, unsafe { std::slice::from_raw_parts(entries, count) })
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_ring_wait`
pub unsafe extern "C" fn emberfs_ring_wait(
    ring_: u64,
    completions: *mut Cqe,
    max: u32,
    min: u32,
    timeout_ns: i64,
) -> c_int {
    guard("emberfs_ring_wait", || {
        if max == 0 || completions.is_null() || !completions.is_aligned() {
            return Err(Failure::invalid(
                "max is 0, or completions is NULL or not aligned",
            ));
        }
        let max = max.min(MAX_ENTRIES) as usize;
        let places = completions.cast::<MaybeUninit<Cqe>>();
        // SAFETY: not NULL, aligned, and by the header's contract `max` places, with anything in them.
        let places = unsafe { std::slice::from_raw_parts_mut(places, max) };
        ring::wait(ring_, places, min, timeout_ns)
    }) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_ring_eventfd`
pub extern "C" fn emberfs_ring_eventfd(ring_: u64) -> c_int {
    guard("emberfs_ring_eventfd", || ring::signal(ring_)) as c_int
}

#[unsafe(no_mangle)]
/// `emberfs_ring_destroy`
pub extern "C" fn emberfs_ring_destroy(ring_: u64) -> c_int {
    guard("emberfs_ring_destroy", || ring::destroy(ring_).map(|()| 0)) as c_int
}
