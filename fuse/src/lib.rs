//! The EmberFS mount: a cluster as a directory of this machine, through the kernel's FUSE.
//!
//! Three layers, each knowing only the one below:
//! - `adapter` speaks the classic transport, the `/dev/fuse` device, through `fuser`: it takes a
//!   request off the device thread, spawns it, and sends the reply. `ring` speaks the other one,
//!   FUSE over io_uring, and serves the same handler.
//! - `handler` holds what a mount must remember: open handles, directory listings, and what the
//!   kernel has cached about each inode.
//! - `backend` is what the handler needs from below: [`emberfs_client::Client`], or a fake in tests.
//!
//! What it guarantees:
//! - **Close-to-open**: an open sees everything that was closed before it, on any machine; the page
//!   cache survives an open only if the file has not changed since its pages were read. Two machines
//!   that hold the same file open at the same time, one of them writing, get no such promise.
//! - **Local coherence**: on one machine, every system call sees what finished before it.
//! - **No silent loss**: `close`, `fsync` and `O_SYNC` writes return the errors of buffered writes.
//! - **Isolation**: a panic in one request fails that request with EIO and nothing else.
//! - **Bounds**: requests in flight, directory windows and per-inode memory are limited.

mod adapter;
mod backend;
mod device;
mod handler;
mod mount;
mod mountinfo;
mod options;
mod preflight;
mod ring;
#[cfg(test)]
mod testing;
mod unmount;

pub use mount::{Mounted, mount};
pub use options::{MountOptions, Transport};
pub use unmount::unmount;

/// The file system type that the kernel shows in `mount` and `/proc/self/mountinfo`.
pub const SUBTYPE: &str = "emberfs";
