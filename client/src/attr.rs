//! Attributes of an inode, and questions that callers ask of them.

use std::time::{SystemTime, UNIX_EPOCH};

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb::{FileKind, Time};

/// Attributes as the metadata server sends them.
pub type Attr = emberfs_proto::pb::Attr;

/// Typed views of an [`Attr`].
pub trait AttrExt {
    /// The inode as an id.
    fn id(&self) -> InodeId;
    /// Is it a regular file?
    fn is_file(&self) -> bool;
    /// Is it a directory?
    fn is_dir(&self) -> bool;
    /// Is it a symbolic link?
    fn is_symlink(&self) -> bool;
    /// Last access; 1970 if the server sent none.
    fn accessed(&self) -> SystemTime;
    /// Last modification of the contents; 1970 if the server sent none.
    fn modified(&self) -> SystemTime;
    /// Last change of anything; 1970 if the server sent none.
    fn changed(&self) -> SystemTime;
    /// 512-byte blocks, as `st_blocks` counts them; holes count as data: see [`crate::Client::blocks`].
    fn blocks(&self) -> u64;
}

impl AttrExt for Attr {
    fn id(&self) -> InodeId {
        InodeId(self.inode)
    }

    fn is_file(&self) -> bool {
        self.kind() == FileKind::File
    }

    fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    fn is_symlink(&self) -> bool {
        self.kind() == FileKind::Symlink
    }

    fn accessed(&self) -> SystemTime {
        time(self.atime)
    }

    fn modified(&self) -> SystemTime {
        time(self.mtime)
    }

    fn changed(&self) -> SystemTime {
        time(self.ctime)
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(512)
    }
}

fn time(time: Option<Time>) -> SystemTime {
    time.map_or(UNIX_EPOCH, SystemTime::from)
}
