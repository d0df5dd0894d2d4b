//! The structs and constants of `include/emberfs.h`; a test compares them with the header.

/// Raised when a struct or function changes its meaning.
pub const ABI_VERSION: u32 = 1;
/// Most bytes of one ring operation.
pub const MAX_LENGTH: u64 = 64 << 20;
/// Most entries, and most registered buffers, of one ring.
pub const MAX_ENTRIES: u32 = 65_536;

/// Does nothing and completes with 0.
pub const OP_NOP: u32 = 0;
/// File to buffer.
pub const OP_READ: u32 = 1;
/// Buffer to file.
pub const OP_WRITE: u32 = 2;
/// What was written before is durable.
pub const OP_FSYNC: u32 = 3;

/// `struct emberfs_options`; 0 is each field's default.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Options {
    /// Bytes of this struct as the caller knows it.
    pub size: u32,
    /// Threads that move bytes.
    pub threads: u32,
    /// Milliseconds that connecting may take.
    pub connect_timeout_ms: u64,
    /// Milliseconds that one call may wait for servers.
    pub io_timeout_ms: u64,
    /// Bytes of read-ahead and buffered writes together.
    pub memory_bytes: u64,
}

/// `struct emberfs_stat`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Stat {
    /// Bytes of this struct as the caller knows it.
    pub size: u32,
    /// Type and permission bits.
    pub mode: u32,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub length: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, seconds since 1970.
    pub mtime_sec: i64,
    /// And nanoseconds.
    pub mtime_nsec: u32,
    /// Hard links.
    pub nlink: u32,
}

/// `struct emberfs_sqe`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Sqe {
    /// One of the `OP_` constants.
    pub op: u32,
    /// 0.
    pub flags: u32,
    /// File handle.
    pub file: u64,
    /// Registered buffer.
    pub buffer: u32,
    /// 0.
    pub reserved: u32,
    /// Where in the buffer, bytes.
    pub buffer_offset: u64,
    /// Bytes.
    pub length: u64,
    /// Where in the file, bytes.
    pub offset: u64,
    /// Comes back in the completion.
    pub user_data: u64,
}

/// `struct emberfs_cqe`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cqe {
    /// Of the operation.
    pub user_data: u64,
    /// Bytes, 0 or a negative errno.
    pub result: i64,
}
