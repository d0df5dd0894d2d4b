//! The kernel's FUSE protocol as bytes, whatever way they come: `abi` are its numbers, `init` the first
//! exchange, `request` and `reply` turn its bytes into ours and back, `convert` gives attributes in its terms.

pub(crate) mod abi;
pub(crate) mod convert;
pub(crate) mod init;
pub(crate) mod reply;
pub(crate) mod request;

/// Largest read and write, bytes: what the kernel allows without raising `fs.fuse.max_pages_limit`.
pub(crate) const MAX_IO: u32 = 1 << 20;

/// Largest message of the device: a write's data and its headers.
pub(crate) const MESSAGE: usize = MAX_IO as usize + 4096;
