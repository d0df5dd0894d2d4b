//! Arguments of the namespace verbs.

use std::time::SystemTime;

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSet {
    /// The server's clock.
    Now,
    /// This time.
    At(SystemTime),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes: truncates or extends.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeSet>,
    /// Last modification.
    pub mtime: Option<TimeSet>,
}

/// How to create a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateFlags {
    /// O_EXCL: an existing name is an error.
    pub exclusive: bool,
    /// O_TRUNC: an existing file is cut to nothing.
    pub truncate: bool,
    /// The handle may read.
    pub read: bool,
    /// The handle may write.
    pub write: bool,
}

/// How to open a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// The handle may read.
    pub read: bool,
    /// The file is to be run: it may be read if the caller may execute it. Only without `write`.
    pub execute: bool,
    /// The handle may write.
    pub write: bool,
    /// O_TRUNC: cut to nothing.
    pub truncate: bool,
    /// O_APPEND: every write goes to the end, whatever its offset says.
    pub append: bool,
    /// O_DIRECT: no read-ahead, and a write returns when its replicas have it.
    pub direct: bool,
    /// O_SYNC: as `direct` for writes, and the length is reported too before a write returns.
    pub sync: bool,
}

/// How to rename.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// RENAME_NOREPLACE: an existing target is an error.
    pub no_replace: bool,
    /// RENAME_EXCHANGE: both names stay and swap what they mean.
    pub exchange: bool,
}

/// The mode of something new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewMode {
    /// Permission bits with setuid, setgid and sticky, as the caller asked for them.
    pub mode: u32,
    /// Permission bits to take away, unless the directory has a default ACL: that counts instead. 0: the
    /// caller's umask is applied already.
    pub umask: u32,
}

impl From<u32> for NewMode {
    fn from(mode: u32) -> Self {
        Self { mode, umask: 0 }
    }
}

/// How to set an extended attribute. Not for ACLs, which are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    /// XATTR_CREATE: an existing attribute is an error.
    pub create: bool,
    /// XATTR_REPLACE: a missing attribute is an error.
    pub replace: bool,
}
