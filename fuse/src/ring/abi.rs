//! Numbers of the kernel's FUSE protocol (`include/uapi/linux/fuse.h`), native byte order.

/// Bytes of `fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;

/// Bytes of `fuse_uring_req_header`: three parts whose offsets follow.
pub(super) const RING_HEADER: usize = 288;
/// Offset of the operation's fixed part.
pub(super) const RING_OP: usize = 128;
/// Offset of `fuse_uring_ent_in_out`.
pub(super) const RING_ENTRY: usize = 256;
/// Offset of its `commit_id`.
pub(super) const RING_COMMIT_ID: usize = RING_ENTRY + 8;
/// Offset of its `payload_sz`.
pub(super) const RING_PAYLOAD_LEN: usize = RING_ENTRY + 16;

/// Command: hand an entry to the kernel.
pub(super) const CMD_REGISTER: u32 = 1;
/// Command: answer an entry's request and hand the entry back.
pub(super) const CMD_COMMIT_AND_FETCH: u32 = 2;

/// Protocol major version.
pub(super) const MAJOR: u32 = 7;
/// Protocol minor version: the first with FUSE over io_uring.
pub(super) const MINOR: u32 = 42;
/// Bytes of `fuse_init_out`.
pub(super) const INIT_OUT: usize = 64;

/// Capabilities negotiated at INIT.
pub(super) mod init {
    pub(in crate::ring) const ASYNC_READ: u64 = 1 << 0;
    pub(in crate::ring) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(in crate::ring) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::ring) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(in crate::ring) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(in crate::ring) const ASYNC_DIO: u64 = 1 << 15;
    pub(in crate::ring) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(in crate::ring) const MAX_PAGES: u64 = 1 << 22;
    pub(in crate::ring) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(in crate::ring) const INIT_EXT: u64 = 1 << 30;
    pub(in crate::ring) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub(in crate::ring) const OVER_IO_URING: u64 = 1 << 41;
}

/// Operation codes.
pub(super) mod op {
    pub(in crate::ring) const LOOKUP: u32 = 1;
    pub(in crate::ring) const FORGET: u32 = 2;
    pub(in crate::ring) const GETATTR: u32 = 3;
    pub(in crate::ring) const SETATTR: u32 = 4;
    pub(in crate::ring) const READLINK: u32 = 5;
    pub(in crate::ring) const SYMLINK: u32 = 6;
    pub(in crate::ring) const MKNOD: u32 = 8;
    pub(in crate::ring) const MKDIR: u32 = 9;
    pub(in crate::ring) const UNLINK: u32 = 10;
    pub(in crate::ring) const RMDIR: u32 = 11;
    pub(in crate::ring) const RENAME: u32 = 12;
    pub(in crate::ring) const LINK: u32 = 13;
    pub(in crate::ring) const OPEN: u32 = 14;
    pub(in crate::ring) const READ: u32 = 15;
    pub(in crate::ring) const WRITE: u32 = 16;
    pub(in crate::ring) const STATFS: u32 = 17;
    pub(in crate::ring) const RELEASE: u32 = 18;
    pub(in crate::ring) const FSYNC: u32 = 20;
    pub(in crate::ring) const FLUSH: u32 = 25;
    pub(in crate::ring) const INIT: u32 = 26;
    pub(in crate::ring) const OPENDIR: u32 = 27;
    pub(in crate::ring) const READDIR: u32 = 28;
    pub(in crate::ring) const RELEASEDIR: u32 = 29;
    pub(in crate::ring) const FSYNCDIR: u32 = 30;
    pub(in crate::ring) const CREATE: u32 = 35;
    pub(in crate::ring) const INTERRUPT: u32 = 36;
    pub(in crate::ring) const DESTROY: u32 = 38;
    pub(in crate::ring) const IOCTL: u32 = 39;
    pub(in crate::ring) const BATCH_FORGET: u32 = 42;
    pub(in crate::ring) const READDIRPLUS: u32 = 44;
    pub(in crate::ring) const RENAME2: u32 = 45;
}

/// Which fields of a SETATTR count.
pub(super) mod attr {
    pub(in crate::ring) const MODE: u32 = 1 << 0;
    pub(in crate::ring) const UID: u32 = 1 << 1;
    pub(in crate::ring) const GID: u32 = 1 << 2;
    pub(in crate::ring) const SIZE: u32 = 1 << 3;
    pub(in crate::ring) const ATIME: u32 = 1 << 4;
    pub(in crate::ring) const MTIME: u32 = 1 << 5;
    pub(in crate::ring) const HANDLE: u32 = 1 << 6;
    pub(in crate::ring) const ATIME_NOW: u32 = 1 << 7;
    pub(in crate::ring) const MTIME_NOW: u32 = 1 << 8;
}

/// Code of the message that makes the kernel forget an inode's attributes.
pub(super) const NOTIFY_INVAL_INODE: u32 = 2;

/// Four bytes at `at`, if they are there.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// Eight bytes at `at`, if they are there.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}
