//! The EmberFS mount: a cluster as a directory of this machine, through the kernel's FUSE.
//!
//! Layers, each knowing only those below:
//! - `classic` and `ring` are the transports: the `/dev/fuse` device, and FUSE over io_uring;
//! - `server` runs each request as a task and sends its reply; `protocol` are the kernel's bytes;
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

mod backend;
mod caching;
mod classic;
mod device;
mod handler;
mod mount;
mod mountinfo;
mod options;
mod preflight;
mod protocol;
mod ring;
mod server;
mod takeover;
#[cfg(test)]
mod testing;
mod unmount;

pub use mount::{Mounted, mount};
pub use options::{MountOptions, Transport};
pub use takeover::{Keeper, Replace, work};
pub use unmount::unmount;

/// The file system type that the kernel shows in `mount` and `/proc/self/mountinfo`.
pub const SUBTYPE: &str = "emberfs";
