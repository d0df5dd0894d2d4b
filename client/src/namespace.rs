//! The namespace verbs.

use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;

use crate::{
    Attr, Client, CreateFlags, Creds, Error, ErrorCode, File, OpenFlags, RenameFlags, Result,
    SetAttr,
};

fn later<T>() -> Result<T> {
    Err(Error::new(ErrorCode::Unsupported, "not built yet"))
}

impl Client {
    /// The entry `name` of a directory.
    pub async fn lookup(&self, _creds: &Creds, _parent: InodeId, _name: &[u8]) -> Result<Attr> {
        later()
    }

    /// Attributes, with the size and mtime of this client's writes that are not yet synced.
    pub async fn getattr(&self, _inode: InodeId) -> Result<Attr> {
        later()
    }

    /// Changes attributes. `file`: an open handle (ftruncate needs no permission check then).
    pub async fn setattr(
        &self,
        _creds: &Creds,
        _inode: InodeId,
        _changes: SetAttr,
        _file: Option<&File>,
    ) -> Result<Attr> {
        later()
    }

    /// Creates (or opens) a file. `mode`: umask already applied.
    pub async fn create(
        &self,
        _creds: &Creds,
        _parent: InodeId,
        _name: &[u8],
        _mode: u32,
        _flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        later()
    }

    /// Opens a file.
    pub async fn open(
        &self,
        _creds: &Creds,
        _inode: InodeId,
        _flags: OpenFlags,
    ) -> Result<(Attr, File)> {
        later()
    }

    /// Creates a directory. `mode`: umask already applied.
    pub async fn mkdir(
        &self,
        _creds: &Creds,
        _parent: InodeId,
        _name: &[u8],
        _mode: u32,
    ) -> Result<Attr> {
        later()
    }

    /// Creates a symbolic link to `target`.
    pub async fn symlink(
        &self,
        _creds: &Creds,
        _parent: InodeId,
        _name: &[u8],
        _target: &[u8],
    ) -> Result<Attr> {
        later()
    }

    /// Creates a FIFO, socket, device or empty file. `mode`: umask already applied.
    pub async fn mknod(
        &self,
        _creds: &Creds,
        _parent: InodeId,
        _name: &[u8],
        _kind: pb::FileKind,
        _mode: u32,
        _rdev: u32,
    ) -> Result<Attr> {
        later()
    }

    /// Gives `inode` a further name.
    pub async fn link(
        &self,
        _creds: &Creds,
        _inode: InodeId,
        _parent: InodeId,
        _name: &[u8],
    ) -> Result<Attr> {
        later()
    }

    /// Removes a name that is no directory; answers the attributes of its inode after that.
    pub async fn unlink(&self, _creds: &Creds, _parent: InodeId, _name: &[u8]) -> Result<Attr> {
        later()
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, _creds: &Creds, _parent: InodeId, _name: &[u8]) -> Result<Attr> {
        later()
    }

    /// Renames.
    pub async fn rename(
        &self,
        _creds: &Creds,
        _parent: InodeId,
        _name: &[u8],
        _new_parent: InodeId,
        _new_name: &[u8],
        _flags: RenameFlags,
    ) -> Result<pb::RenameReply> {
        later()
    }

    /// The target of a symbolic link.
    pub async fn readlink(&self, _creds: &Creds, _inode: InodeId) -> Result<bytes::Bytes> {
        later()
    }

    /// Capacity and use.
    pub async fn statfs(&self, _creds: &Creds) -> Result<pb::StatFsReply> {
        later()
    }

    /// One page of a directory: up to `limit` entries after the name `after` (empty: from the start).
    pub async fn readdir(
        &self,
        _creds: &Creds,
        _inode: InodeId,
        _after: &[u8],
        _limit: u32,
    ) -> Result<pb::ReadDirReply> {
        later()
    }

    /// Walks a path from the root; follows symbolic links, up to 40.
    pub async fn resolve(&self, _creds: &Creds, _path: &str) -> Result<Attr> {
        later()
    }
}
