//! What the handler needs from below. [`emberfs_client::Client`] is the only real one.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_client::{
    Allocate, Attr, CacheEvent, Client, CreateFlags, Creds, File, LockInfo, LockRequest, LockSpace,
    LossesHeard, NewMode, OpenFlags, RenameFlags, RequestLog, RequestScope, Result, SetAttr,
    Whence, XattrFlags,
};
use emberfs_proto::ids::InodeId;
use emberfs_proto::pb;
use tokio::sync::mpsc;

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
    /// Blocks of 512 bytes that it takes, without holes and counted once.
    fn blocks(&self, attr: &Attr) -> impl Future<Output = Result<u64>> + Send;
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
        mode: NewMode,
        flags: CreateFlags,
    ) -> impl Future<Output = Result<(Attr, Self::File)>> + Send;
    fn create_unnamed(
        &self,
        creds: &Creds,
        parent: InodeId,
        mode: NewMode,
        flags: CreateFlags,
    ) -> impl Future<Output = Result<(Attr, Self::File)>> + Send;
    /// `believed`: what its attributes are, if it is likely to be read soon.
    fn open(
        &self,
        creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
        believed: Option<&Attr>,
    ) -> impl Future<Output = Result<(Attr, Self::File)>> + Send;
    fn mkdir(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: NewMode,
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
        mode: NewMode,
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
    fn remove_tree(
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
    fn get_xattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        name: &[u8],
    ) -> impl Future<Output = Result<Bytes>> + Send;
    fn set_xattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> impl Future<Output = Result<()>> + Send;
    fn remove_xattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        name: &[u8],
    ) -> impl Future<Output = Result<()>> + Send;
    fn list_xattr(
        &self,
        creds: &Creds,
        inode: InodeId,
    ) -> impl Future<Output = Result<Vec<Bytes>>> + Send;
    /// Dropped while it waits, it gives the wait up.
    fn set_lock(
        &self,
        inode: InodeId,
        lock: LockRequest,
        wait: bool,
    ) -> impl Future<Output = Result<()>> + Send;
    fn test_lock(
        &self,
        inode: InodeId,
        lock: LockRequest,
    ) -> impl Future<Output = Result<Option<LockInfo>>> + Send;
    fn release_locks(
        &self,
        inode: InodeId,
        owner: u64,
        space: LockSpace,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Answers how many bytes were copied; fewer than `len` at the end of `from`.
    fn copy_range(
        &self,
        from: &Self::File,
        from_offset: u64,
        to: &Self::File,
        to_offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<u64>> + Send;
    fn hear_of_parents(&self, hear: impl Fn(&Attr) + Send + Sync + 'static);
    fn losses_heard(&self, inode: InodeId) -> LossesHeard;
    fn note_changes(&self, note: impl Fn(u64, u64) + Send + Sync + 'static);
    fn inherit_changes(&self, start: u64, commit: u64);
    fn sync_changes(
        &self,
        inode: InodeId,
        heard: &LossesHeard,
    ) -> impl Future<Output = Result<()>> + Send;
    fn statfs(
        &self,
        creds: &Creds,
        inode: InodeId,
    ) -> impl Future<Output = Result<pb::StatFsReply>> + Send;
    /// What other machines change, from now on; `None` where nobody can tell.
    fn watch(&self) -> Option<mpsc::Receiver<CacheEvent>>;
    /// For the changes of one request.
    fn scope(&self, log: Arc<dyn RequestLog>) -> Option<RequestScope>;
    /// An earlier process of this client asked under these numbers, and may not have acted on the answers.
    fn hold_numbers(&self, numbers: &[u64]);
    /// What is left of those is not asked for again.
    fn release_numbers(&self);
    /// From now on no server does anything for an earlier process of this client.
    fn shut_out_earlier(&self) -> impl Future<Output = Result<()>> + Send;
    /// Opens what an earlier process of this client has open; `complete`: that one told the servers of all that it wrote.
    fn resume_file(
        &self,
        creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
        complete: bool,
    ) -> impl Future<Output = Result<(Attr, Self::File)>> + Send;
    /// Takes the locks of an earlier process over; the files whose end it has.
    fn resume_locks(&self) -> impl Future<Output = Result<Vec<InodeId>>> + Send;
    fn shutdown(&self) -> impl Future<Output = ()> + Send;
}

/// An open file of a [`Backend`].
pub(crate) trait OpenFile: Clone + Send + Sync + 'static {
    /// Short only at the end of the file.
    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Result<Bytes>> + Send;
    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<()>> + Send;
    /// Length as far as it is known here, buffered writes included.
    fn size(&self) -> u64;
    /// Every buffered write of this inode is durable and its length is reported.
    fn sync(&self) -> impl Future<Output = Result<Attr>> + Send;
    fn allocate(
        &self,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Where data or a hole begins, at `offset` or after it.
    fn seek(&self, offset: u64, whence: Whence) -> impl Future<Output = Result<u64>> + Send;
    /// Opens it anew, because the session that it was opened with ends.
    fn renew(&self) -> impl Future<Output = Result<()>> + Send;
    /// Whether close(2) may return before what was written is on the servers.
    fn may_close_late(&self) -> bool;
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

    async fn blocks(&self, attr: &Attr) -> Result<u64> {
        self.blocks(attr).await
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
        mode: NewMode,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        self.create_with(creds, parent, name, mode, flags).await
    }

    async fn create_unnamed(
        &self,
        creds: &Creds,
        parent: InodeId,
        mode: NewMode,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        self.create_unnamed(creds, parent, mode, flags).await
    }

    async fn open(
        &self,
        creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
        believed: Option<&Attr>,
    ) -> Result<(Attr, File)> {
        match believed {
            Some(believed) => self.open_to_read(creds, inode, flags, believed).await,
            None => self.open(creds, inode, flags).await,
        }
    }

    async fn mkdir(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: NewMode,
    ) -> Result<Attr> {
        self.mkdir_with(creds, parent, name, mode).await
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
        mode: NewMode,
        rdev: u32,
    ) -> Result<Attr> {
        self.mknod_with(creds, parent, name, kind, mode, rdev).await
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

    async fn remove_tree(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.remove_tree(creds, parent, name).await
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

    async fn get_xattr(&self, creds: &Creds, inode: InodeId, name: &[u8]) -> Result<Bytes> {
        self.get_xattr(creds, inode, name).await
    }

    async fn set_xattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.set_xattr(creds, inode, name, value, flags).await
    }

    async fn remove_xattr(&self, creds: &Creds, inode: InodeId, name: &[u8]) -> Result<()> {
        self.remove_xattr(creds, inode, name).await
    }

    async fn list_xattr(&self, creds: &Creds, inode: InodeId) -> Result<Vec<Bytes>> {
        self.list_xattr(creds, inode).await
    }

    async fn set_lock(&self, inode: InodeId, lock: LockRequest, wait: bool) -> Result<()> {
        self.set_lock(inode, lock, wait).await
    }

    async fn test_lock(&self, inode: InodeId, lock: LockRequest) -> Result<Option<LockInfo>> {
        self.test_lock(inode, lock).await
    }

    async fn release_locks(&self, inode: InodeId, owner: u64, space: LockSpace) -> Result<()> {
        self.release_locks(inode, owner, space).await
    }

    async fn copy_range(
        &self,
        from: &File,
        from_offset: u64,
        to: &File,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        self.copy_range(from, from_offset, to, to_offset, len).await
    }

    fn watch(&self) -> Option<mpsc::Receiver<CacheEvent>> {
        Some(self.watch())
    }

    fn hear_of_parents(&self, hear: impl Fn(&Attr) + Send + Sync + 'static) {
        self.hear_of_parents(hear);
    }

    fn losses_heard(&self, inode: InodeId) -> LossesHeard {
        self.losses_heard(inode)
    }

    fn note_changes(&self, note: impl Fn(u64, u64) + Send + Sync + 'static) {
        self.note_changes(note);
    }

    fn inherit_changes(&self, start: u64, commit: u64) {
        self.inherit_changes(start, commit);
    }

    async fn sync_changes(&self, inode: InodeId, heard: &LossesHeard) -> Result<()> {
        self.sync_changes(inode, heard).await
    }

    async fn statfs(&self, creds: &Creds, inode: InodeId) -> Result<pb::StatFsReply> {
        self.statfs(creds, inode).await
    }

    fn scope(&self, log: Arc<dyn RequestLog>) -> Option<RequestScope> {
        Some(self.request_scope(log))
    }

    fn hold_numbers(&self, numbers: &[u64]) {
        self.hold_numbers(numbers);
    }

    fn release_numbers(&self) {
        self.release_numbers();
    }

    async fn shut_out_earlier(&self) -> Result<()> {
        self.shut_out_earlier().await
    }

    async fn resume_file(
        &self,
        creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
        complete: bool,
    ) -> Result<(Attr, File)> {
        if complete {
            self.reopen_file(inode, flags, creds).await
        } else {
            self.resume_file(inode, flags, creds).await
        }
    }

    async fn resume_locks(&self) -> Result<Vec<InodeId>> {
        self.resume_locks().await
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

    fn size(&self) -> u64 {
        self.size()
    }

    async fn sync(&self) -> Result<Attr> {
        self.sync().await
    }

    async fn allocate(&self, offset: u64, len: u64, how: Allocate) -> Result<()> {
        self.allocate(offset, len, how).await
    }

    async fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        self.seek(offset, whence).await
    }

    async fn renew(&self) -> Result<()> {
        self.renew().await
    }

    fn may_close_late(&self) -> bool {
        self.may_close_late()
    }

    async fn close(self) -> Result<()> {
        self.close().await
    }
}
