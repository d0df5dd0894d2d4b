//! Numbers of the kernel's FUSE protocol (`include/uapi/linux/fuse.h`), native byte order.

/// Bytes of `fuse_in_header`.
pub(crate) const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub(crate) const OUT_HEADER: usize = 16;

/// Bytes of `fuse_entry_out`.
pub(crate) const ENTRY_OUT: usize = 128;
/// Bytes of `fuse_uring_req_header`: three parts whose offsets follow.
pub(crate) const RING_HEADER: usize = 288;
/// Offset of the operation's fixed part.
pub(crate) const RING_OP: usize = 128;
/// Offset of `fuse_uring_ent_in_out`.
pub(crate) const RING_ENTRY: usize = 256;
/// Offset of its `commit_id`.
pub(crate) const RING_COMMIT_ID: usize = RING_ENTRY + 8;
/// Offset of its `payload_sz`.
pub(crate) const RING_PAYLOAD_LEN: usize = RING_ENTRY + 16;

/// Command: hand an entry to the kernel.
pub(crate) const CMD_REGISTER: u32 = 1;
/// Command: answer an entry's request and hand the entry back.
pub(crate) const CMD_COMMIT_AND_FETCH: u32 = 2;

/// Protocol major version.
pub(crate) const MAJOR: u32 = 7;
/// Protocol minor version: the first with FUSE over io_uring.
pub(crate) const MINOR: u32 = 42;
/// Bytes of `fuse_init_out`.
pub(crate) const INIT_OUT: usize = 64;

/// Capabilities negotiated at INIT.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const POSIX_LOCKS: u64 = 1 << 1;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    pub(crate) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Requests that are sent again are marked.
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
    pub(crate) const OVER_IO_URING: u64 = 1 << 41;
}

/// Operation codes.
pub(crate) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const TMPFILE: u32 = 51;
}

/// Which fields of a SETATTR count.
pub(crate) mod attr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const HANDLE: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// A write takes set-id bits away.
pub(crate) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// A release ends the flock of its owner.
pub(crate) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// A lock is one of flock(2), not of fcntl(2).
pub(crate) const LOCK_FLOCK: u32 = 1;

/// Code of the message that makes the kernel forget an inode's attributes.
pub(crate) const NOTIFY_INVAL_INODE: u32 = 2;
/// Code of the message that makes the kernel forget a name.
pub(crate) const NOTIFY_INVAL_ENTRY: u32 = 3;
/// A flag of it, since Linux 6.2; before, it means nothing.
pub(crate) const EXPIRE_ONLY: u32 = 1;
/// Send again what was read and not answered.
pub(crate) const NOTIFY_RESEND: u32 = 7;
/// Ask again for what all names mean.
pub(crate) const NOTIFY_INC_EPOCH: u32 = 8;

/// Set in the number of a request that is sent again.
pub(crate) const UNIQUE_RESENT: u64 = 1 << 63;

/// Four bytes at `at`, if they are there.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// Eight bytes at `at`, if they are there.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}
