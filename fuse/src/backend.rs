//! What the handler needs from below. [`emberfs_client::Client`] is the only real one.

use std::future::Future;

use bytes::Bytes;
use emberfs_client::{
    Attr, Client, CreateFlags, Creds, File, OpenFlags, RenameFlags, Result, SetAttr,
};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;

/// A file system that the handler can serve; each method is the client's of the same name.
pub(crate) trait Backend: Send + Sync + 'static {
    /// An open file.
    type File: OpenFile;

    fn root(&self) -> InodeId;
    fn resolve(&self, creds: &Creds, path: &str) -> impl Future<Output = Result<Attr>> + Send;
    fn lookup(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn getattr(&self, inode: InodeId) -> impl Future<Output = Result<Attr>> + Send;
    fn setattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        changes: SetAttr,
        file: Option<&Self::File>,
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn create(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: CreateFlags,
    ) -> impl Future<Output = Result<(Attr, Self::File)>> + Send;
    fn open(
        &self,
        creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
    ) -> impl Future<Output = Result<(Attr, Self::File)>> + Send;
    fn mkdir(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: u32,
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn symlink(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn mknod(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        kind: pb::FileKind,
        mode: u32,
        rdev: u32,
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn link(
        &self,
        creds: &Creds,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn unlink(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn rmdir(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
    ) -> impl Future<Output = Result<Attr>> + Send;
    fn rename(
        &self,
        creds: &Creds,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> impl Future<Output = Result<pb::RenameReply>> + Send;
    fn readlink(&self, creds: &Creds, inode: InodeId)
    -> impl Future<Output = Result<Bytes>> + Send;
    fn readdir(
        &self,
        creds: &Creds,
        inode: InodeId,
        after: &[u8],
        limit: u32,
    ) -> impl Future<Output = Result<pb::ReadDirReply>> + Send;
    fn statfs(&self, creds: &Creds) -> impl Future<Output = Result<pb::StatFsReply>> + Send;
    fn shutdown(&self) -> impl Future<Output = ()> + Send;
}

/// An open file of a [`Backend`].
pub(crate) trait OpenFile: Clone + Send + Sync + 'static {
    /// Short only at the end of the file.
    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Result<Bytes>> + Send;
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<()>> + Send;
    /// Every buffered write of this inode is durable and its length is reported.
    fn sync(&self) -> impl Future<Output = Result<Attr>> + Send;
    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

impl Backend for Client {
    type File = File;

    fn root(&self) -> InodeId {
        self.root()
    }

    async fn resolve(&self, creds: &Creds, path: &str) -> Result<Attr> {
        self.resolve(creds, path).await
    }

    async fn lookup(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.lookup(creds, parent, name).await
    }

    async fn getattr(&self, inode: InodeId) -> Result<Attr> {
        self.getattr(inode).await
    }

    async fn setattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        changes: SetAttr,
        file: Option<&File>,
    ) -> Result<Attr> {
        self.setattr(creds, inode, changes, file).await
    }

    async fn create(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        self.create(creds, parent, name, mode, flags).await
    }

    async fn open(&self, creds: &Creds, inode: InodeId, flags: OpenFlags) -> Result<(Attr, File)> {
        self.open(creds, inode, flags).await
    }

    async fn mkdir(&self, creds: &Creds, parent: InodeId, name: &[u8], mode: u32) -> Result<Attr> {
        self.mkdir(creds, parent, name, mode).await
    }

    async fn symlink(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr> {
        self.symlink(creds, parent, name, target).await
    }

    async fn mknod(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        kind: pb::FileKind,
        mode: u32,
        rdev: u32,
    ) -> Result<Attr> {
        self.mknod(creds, parent, name, kind, mode, rdev).await
    }

    async fn link(
        &self,
        creds: &Creds,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        self.link(creds, inode, parent, name).await
    }

    async fn unlink(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.unlink(creds, parent, name).await
    }

    async fn rmdir(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.rmdir(creds, parent, name).await
    }

    async fn rename(
        &self,
        creds: &Creds,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> Result<pb::RenameReply> {
        self.rename(creds, from.0, from.1, to.0, to.1, flags).await
    }

    async fn readlink(&self, creds: &Creds, inode: InodeId) -> Result<Bytes> {
        self.readlink(creds, inode).await
    }

    async fn readdir(
        &self,
        creds: &Creds,
        inode: InodeId,
        after: &[u8],
        limit: u32,
    ) -> Result<pb::ReadDirReply> {
        self.readdir(creds, inode, after, limit).await
    }

    async fn statfs(&self, creds: &Creds) -> Result<pb::StatFsReply> {
        self.statfs(creds).await
    }

    async fn shutdown(&self) {
        self.shutdown().await;
    }
}

impl OpenFile for File {
    async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.write(offset, data).await
    }

    async fn sync(&self) -> Result<Attr> {
        self.sync().await
    }

    async fn close(self) -> Result<()> {
        self.close().await
    }
}
