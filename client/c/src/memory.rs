//! Memory of the caller: the only place that follows its addresses, apart from the arguments of a call.

use std::os::fd::{FromRawFd, OwnedFd};

use bytes::Bytes;

use crate::error::{Failure, Result};

/// A span of the caller's memory. Made only by [`Region::new`], whose caller vouches for the memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    address: *mut u8,
    len: usize,
}

// SAFETY: a region is an address and a length; the memory behind belongs to no thread, and who may
// touch it when is the contract of `Region::new`.
unsafe impl Send for Region {}
// SAFETY: as for `Send`; no method hands out a reference to the memory.
unsafe impl Sync for Region {}

impl Region {
    /// # Safety
    /// The `len` bytes at `address` stay readable (and writable, if [`Region::fill`] is used) as long
    /// as this and what is cut from it are used, and nobody else writes to a part while an operation
    /// on it is in flight, nor reads from one that is being filled.
    pub(crate) unsafe fn new(address: *mut u8, len: usize) -> Result<Self> {
        if address.is_null() || len == 0 {
            return Err(Failure::invalid("a buffer of no bytes, or at NULL"));
        }
        if len > isize::MAX as usize || (address as usize).checked_add(len).is_none() {
            return Err(Failure::invalid(format!(
                "a buffer of {len} bytes does not fit into memory"
            )));
        }
        Ok(Self { address, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A part of it; `None` if that is not all inside.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        Some(Self {
            // Inside of the region, so no overflow.
            address: self.address.wrapping_add(offset as usize),
            len: len as usize,
        })
    }

    /// Copies `data` to the start; what does not fit is left out. Answers how much was copied.
    ///
    /// A client that receives straight into the region would replace this.
    pub(crate) fn fill(&self, data: &[u8]) -> usize {
        let len = data.len().min(self.len);
        // SAFETY: `address` has `self.len` writable bytes that no one else touches now (the contract
        // of `new`), `len` is not more, and `data` is memory of this library, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.address, len) };
        len
    }

    /// A copy of it. No view: the client may keep bytes until long after the write has completed.
    pub(crate) fn copy(&self) -> Bytes {
        // SAFETY: `address` has `self.len` readable bytes that no one writes to now (the contract of
        // `new`); the slice ends with this call.
        let bytes = unsafe { std::slice::from_raw_parts(self.address, self.len) };
        Bytes::copy_from_slice(bytes)
    }
}

/// A counter that poll(2) can wait for.
pub(crate) fn eventfd() -> std::io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
