//! Extended attributes: the names that mean something to EmberFS, and Linux's limits, which are ours.

/// Longest name, prefix included, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Longest list of the names of one inode, each followed by a NUL, in bytes.
pub const MAX_LIST_BYTES: usize = 64 << 10;

/// The ACL that is in force for an inode.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The ACL that what is created in a directory begins with.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// File capabilities: what a program may beyond its caller.
pub const CAPABILITY: &[u8] = b"security.capability";
