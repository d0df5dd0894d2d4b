//! The same client without async: each call blocks its thread. Owns a runtime of its own.
//!
//! Not to be used from within a tokio runtime: a blocking call there panics.

use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use emberfs_proto::ids::InodeId;
use emberfs_proto::layout::Layout;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use tokio::runtime::Runtime;

use crate::read_many::in_order;
use crate::{
    Allocate, Attr, ClientConfig, CreateFlags, Creds, LockInfo, LockRequest, LockSpace, OpenFlags,
    ReadItem, RenameFlags, SetAttr, Whence, XattrFlags,
};

/// Threads that move bytes, at most: no more than there are cores.
const MAX_WORKERS: usize = 4;

/// A connection to one cluster. Clones share it; the last to go stops the runtime, so call
/// [`Client::shutdown`] before that.
#[derive(Clone)]
pub struct Client {
    client: crate::Client,
    runtime: Arc<Owned>,
}

/// A runtime that ends without waiting, wherever its last owner is dropped.
struct Owned(Option<Runtime>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Owned {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0
            .as_ref()
            .expect("only drop takes the runtime out")
            .block_on(future)
    }
}

impl Client {
    /// As [`crate::Client::connect`], with a runtime of up to four threads.
    pub fn connect(config: ClientConfig) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder
            .worker_threads(cores.min(MAX_WORKERS))
            .thread_name("emberfs-client")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| {
            Error::new(
                ErrorCode::Internal,
                format!("the client's threads could not be started: {error}"),
            )
        })?;
        let client = runtime.block_on(crate::Client::connect(config))?;
        Ok(Self {
            client,
            runtime: Arc::new(Owned(Some(runtime))),
        })
    }

    /// The async client behind this one.
    pub fn inner(&self) -> &crate::Client {
        &self.client
    }

    /// Runs any future on the client's runtime and waits for it.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// As [`crate::Client::shutdown`].
    pub fn shutdown(&self) {
        self.block_on(self.client.shutdown());
    }

    /// The root directory.
    pub fn root(&self) -> InodeId {
        self.client.root()
    }

    /// As [`crate::Client::resolve`].
    pub fn resolve(&self, creds: &Creds, path: &str) -> Result<Attr> {
        self.block_on(self.client.resolve(creds, path))
    }

    /// As [`crate::Client::lookup`].
    pub fn lookup(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.block_on(self.client.lookup(creds, parent, name))
    }

    /// As [`crate::Client::getattr`].
    pub fn getattr(&self, inode: InodeId) -> Result<Attr> {
        self.block_on(self.client.getattr(inode))
    }

    /// As [`crate::Client::setattr`].
    pub fn setattr(&self, creds: &Creds, inode: InodeId, changes: SetAttr) -> Result<Attr> {
        self.block_on(self.client.setattr(creds, inode, changes, None))
    }

    /// As [`crate::Client::mkdir`].
    pub fn mkdir(&self, creds: &Creds, parent: InodeId, name: &[u8], mode: u32) -> Result<Attr> {
        self.block_on(self.client.mkdir(creds, parent, name, mode))
    }

    /// As [`crate::Client::unlink`].
    pub fn unlink(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.block_on(self.client.unlink(creds, parent, name))
    }

    /// As [`crate::Client::rmdir`].
    pub fn rmdir(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.block_on(self.client.rmdir(creds, parent, name))
    }

    /// As [`crate::Client::remove_tree`].
    pub fn remove_tree(&self, creds: &Creds, parent: InodeId, name: &[u8]) -> Result<Attr> {
        self.block_on(self.client.remove_tree(creds, parent, name))
    }

    /// As [`crate::Client::rename`].
    pub fn rename(
        &self,
        creds: &Creds,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> Result<pb::RenameReply> {
        self.block_on(self.client.rename(creds, from.0, from.1, to.0, to.1, flags))
    }

    /// As [`crate::Client::readdir`].
    pub fn readdir(
        &self,
        creds: &Creds,
        inode: InodeId,
        after: &[u8],
        limit: u32,
    ) -> Result<pb::ReadDirReply> {
        self.block_on(self.client.readdir(creds, inode, after, limit))
    }

    /// As [`crate::Client::create`].
    pub fn create(
        &self,
        creds: &Creds,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        let (attr, file) = self.block_on(self.client.create(creds, parent, name, mode, flags))?;
        Ok((
            attr,
            File {
                file,
                runtime: self.runtime.clone(),
            },
        ))
    }

    /// As [`crate::Client::open`].
    pub fn open(&self, creds: &Creds, inode: InodeId, flags: OpenFlags) -> Result<(Attr, File)> {
        let (attr, file) = self.block_on(self.client.open(creds, inode, flags))?;
        Ok((
            attr,
            File {
                file,
                runtime: self.runtime.clone(),
            },
        ))
    }
}

impl Client {
    /// As [`crate::Client::set_lock`].
    pub fn set_lock(&self, inode: InodeId, request: LockRequest, wait: bool) -> Result<()> {
        self.block_on(self.client.set_lock(inode, request, wait))
    }

    /// As [`crate::Client::test_lock`].
    pub fn test_lock(&self, inode: InodeId, request: LockRequest) -> Result<Option<LockInfo>> {
        self.block_on(self.client.test_lock(inode, request))
    }

    /// As [`crate::Client::release_locks`].
    pub fn release_locks(&self, inode: InodeId, owner: u64, space: LockSpace) -> Result<()> {
        self.block_on(self.client.release_locks(inode, owner, space))
    }
}

impl Client {
    /// As [`crate::Client::read_many`], with the results in the order of the items.
    pub fn read_many(&self, items: Vec<ReadItem>) -> Vec<Result<BytesMut>> {
        let len = items.len();
        self.block_on(in_order(len, self.client.read_many(items)))
    }

    /// As [`crate::Client::fetch_files`], with the results in the order of the names.
    pub fn fetch_files<N: AsRef<[u8]>>(
        &self,
        creds: &Creds,
        parent: InodeId,
        names: &[N],
    ) -> Vec<Result<(Attr, Bytes)>> {
        let files = self.client.fetch_files(creds, parent, names);
        self.block_on(in_order(names.len(), files))
    }
}

impl Client {
    /// As [`crate::Client::create_unnamed`].
    pub fn create_unnamed(
        &self,
        creds: &Creds,
        parent: InodeId,
        mode: u32,
        flags: CreateFlags,
    ) -> Result<(Attr, File)> {
        let created = self.client.create_unnamed(creds, parent, mode, flags);
        let (attr, file) = self.block_on(created)?;
        let runtime = self.runtime.clone();
        Ok((attr, File { file, runtime }))
    }

    /// As [`crate::Client::link`].
    pub fn link(
        &self,
        creds: &Creds,
        inode: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Result<Attr> {
        self.block_on(self.client.link(creds, inode, parent, name))
    }

    /// As [`crate::Client::copy_range`], from and to a file and an offset in it.
    pub fn copy_range(&self, from: (&File, u64), to: (&File, u64), len: u64) -> Result<u64> {
        let (from, from_offset) = (&from.0.file, from.1);
        let (to, to_offset) = (&to.0.file, to.1);
        let copied = self
            .client
            .copy_range(from, from_offset, to, to_offset, len);
        self.block_on(copied)
    }

    /// As [`crate::Client::allocated`].
    pub fn allocated(&self, inode: InodeId, layout: Layout) -> Result<u64> {
        self.block_on(self.client.allocated(inode, layout))
    }

    /// As [`crate::Client::blocks`].
    pub fn blocks(&self, attr: &Attr) -> Result<u64> {
        self.block_on(self.client.blocks(attr))
    }

    /// As [`crate::Client::get_xattr`].
    pub fn get_xattr(&self, creds: &Creds, inode: InodeId, name: &[u8]) -> Result<Bytes> {
        self.block_on(self.client.get_xattr(creds, inode, name))
    }

    /// As [`crate::Client::set_xattr`].
    pub fn set_xattr(
        &self,
        creds: &Creds,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        self.block_on(self.client.set_xattr(creds, inode, name, value, flags))
    }

    /// As [`crate::Client::remove_xattr`].
    pub fn remove_xattr(&self, creds: &Creds, inode: InodeId, name: &[u8]) -> Result<()> {
        self.block_on(self.client.remove_xattr(creds, inode, name))
    }

    /// As [`crate::Client::list_xattr`].
    pub fn list_xattr(&self, creds: &Creds, inode: InodeId) -> Result<Vec<Bytes>> {
        self.block_on(self.client.list_xattr(creds, inode))
    }
}

/// An open file.
#[derive(Clone)]
pub struct File {
    // Before the runtime: a drop without close needs it.
    file: crate::File,
    runtime: Arc<Owned>,
}

impl File {
    /// The async file behind this one.
    pub fn inner(&self) -> &crate::File {
        &self.file
    }

    /// Length in bytes as far as this client knows.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Reads into `buf`; answers the number of bytes, less than its length only at the end of the file.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let data = self.runtime.block_on(self.file.read(offset, buf.len()))?;
        buf[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    /// As [`crate::File::read`].
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.runtime.block_on(self.file.read(offset, len))
    }

    /// As [`crate::File::read_many`].
    pub fn read_many(&self, ranges: &[(u64, usize)]) -> Vec<Result<Bytes>> {
        self.runtime.block_on(self.file.read_many(ranges))
    }

    /// Copies `data` into the client's buffer; as [`crate::File::write`].
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.runtime
            .block_on(self.file.write(offset, Bytes::copy_from_slice(data)))
    }

    /// As [`crate::File::append`].
    pub fn append(&self, data: &[u8]) -> Result<u64> {
        self.runtime
            .block_on(self.file.append(Bytes::copy_from_slice(data)))
    }

    /// As [`crate::File::sync`].
    pub fn sync(&self) -> Result<Attr> {
        self.runtime.block_on(self.file.sync())
    }

    /// As [`crate::File::close`].
    pub fn close(self) -> Result<()> {
        self.runtime.block_on(self.file.close())
    }
}

impl File {
    /// As [`crate::File::allocate`].
    pub fn allocate(&self, offset: u64, len: u64, what: Allocate) -> Result<()> {
        self.runtime.block_on(self.file.allocate(offset, len, what))
    }

    /// As [`crate::File::seek`].
    pub fn seek(&self, offset: u64, whence: Whence) -> Result<u64> {
        self.runtime.block_on(self.file.seek(offset, whence))
    }

    /// As [`crate::File::allocated`].
    pub fn allocated(&self) -> Result<u64> {
        self.runtime.block_on(self.file.allocated())
    }
}
