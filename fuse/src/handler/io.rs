//! Open files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use emberfs_client::{Attr, CreateFlags, Creds, OpenFlags, Result};

use super::inodes::Stamp;
use super::namespace::check_name;
use super::{Handler, bad_handle};
use crate::backend::{Backend, OpenFile};

/// An open file of the kernel's.
pub(super) struct FileHandle<F> {
    pub(super) inode: u64,
    pub(super) file: F,
    pub(super) writable: bool,
    /// O_SYNC or O_DSYNC: a write is durable before it returns. (For the mount option `sync` the
    /// kernel sends an fsync after each write.)
    sync: bool,
    /// Writes begun.
    written: AtomicU64,
    /// How many of them were begun before the last successful sync.
    synced: AtomicU64,
    /// The state of the file at the open.
    stamp: Stamp,
    /// The kernel has acted on the open's reply.
    confirmed: AtomicBool,
}

impl<F> FileHandle<F> {
    fn is_dirty(&self) -> bool {
        self.written.load(Ordering::Acquire) > self.synced.load(Ordering::Acquire)
    }
}

/// The reply to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Names the open in later requests.
    pub(crate) handle: u64,
    /// Pages that the kernel has cached are still right.
    pub(crate) keep_cache: bool,
    /// Attributes that the kernel has cached are not: to be invalidated before the reply.
    pub(crate) attr_stale: bool,
    /// Bypass the page cache.
    pub(crate) direct: bool,
    /// Can this handle have something to flush at close?
    pub(crate) writable: bool,
}

impl<B: Backend> Handler<B> {
    /// `flags` as of open(2).
    pub(crate) async fn open(&self, creds: &Creds, node: u64, flags: i32) -> Result<Opened> {
        let inode = self.inode(node);
        let wanted = open_flags(flags);
        if wanted.truncate {
            self.sync_writers(inode.0).await?;
        }
        let (attr, file) = self.backend.open(creds, inode, wanted).await?;
        if wanted.truncate {
            self.inodes.touched(inode.0);
        }
        Ok(self.register(attr, file, flags).1)
    }

    /// `flags` as of open(2); `mode` with the umask applied.
    pub(crate) async fn create(
        &self,
        creds: &Creds,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Attr, Opened)> {
        check_name(name)?;
        let parent = self.inode(parent);
        let wanted = open_flags(flags);
        let wanted = CreateFlags {
            exclusive: flags & libc::O_EXCL != 0,
            truncate: wanted.truncate,
            read: wanted.read,
            write: wanted.write,
        };
        let (attr, file) = self
            .backend
            .create(creds, parent, name, mode & 0o7777, wanted)
            .await?;
        self.inodes.touched(parent.0);
        let (attr, opened) = self.register(attr, file, flags);
        Ok((self.show(attr), opened))
    }

    fn register(&self, mut attr: Attr, file: B::File, flags: i32) -> (Attr, Opened) {
        let writable = open_flags(flags).write;
        let verdict = self.inodes.opened(&mut attr, writable);
        let handle = self.draw_handle();
        let state = FileHandle {
            inode: attr.inode,
            file,
            writable,
            sync: flags & libc::O_DSYNC != 0,
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            stamp: Stamp::of(&attr),
            confirmed: AtomicBool::new(false),
        };
        self.files.write().insert(handle, Arc::new(state));
        let opened = Opened {
            handle,
            keep_cache: verdict.keep_cache,
            attr_stale: verdict.attr_stale,
            direct: self.direct_io || flags & libc::O_DIRECT != 0,
            writable,
        };
        (attr, opened)
    }

    /// The handle; that a request names it proves that the kernel has acted on its open.
    fn file(&self, handle: u64) -> Result<Arc<FileHandle<B::File>>> {
        let found = self.files.read().get(&handle).cloned();
        let file = found.ok_or_else(|| bad_handle(handle))?;
        self.confirm(&file);
        Ok(file)
    }

    fn confirm(&self, file: &FileHandle<B::File>) {
        if !file.confirmed.swap(true, Ordering::AcqRel) {
            self.inodes.confirm(file.inode, file.stamp);
        }
    }

    /// Short only at the end of the file.
    pub(crate) async fn read(&self, handle: u64, offset: u64, len: usize) -> Result<Bytes> {
        self.file(handle)?.file.read(offset, len).await
    }

    /// Writes all of `data`.
    pub(crate) async fn write(&self, handle: u64, offset: u64, data: Bytes) -> Result<()> {
        let file = self.file(handle)?;
        let end = offset.saturating_add(data.len() as u64);
        file.written.fetch_add(1, Ordering::AcqRel);
        file.file.write(offset, data).await?;
        self.inodes.wrote(file.inode, end);
        if file.sync {
            self.sync(&file).await
        } else {
            Ok(())
        }
    }

    /// What close(2) waits for, so that it reports the errors of buffered writes.
    pub(crate) async fn flush(&self, handle: u64) -> Result<()> {
        let file = self.file(handle)?;
        if file.is_dirty() {
            self.sync(&file).await
        } else {
            Ok(())
        }
    }

    /// Writes through any handle of this mount count: fsync(2) is about the file.
    pub(crate) async fn fsync(&self, handle: u64) -> Result<()> {
        let file = self.file(handle)?;
        self.sync_writers(file.inode).await
    }

    /// The last reference to the open is gone.
    pub(crate) async fn release(&self, handle: u64) -> Result<()> {
        let removed = self.files.write().remove(&handle);
        let file = removed.ok_or_else(|| bad_handle(handle))?;
        self.confirm(&file);
        let outcome = if file.is_dirty() {
            // Written through a mapping after the last close.
            self.sync(&file).await
        } else {
            Ok(())
        };
        let outcome = outcome.and(file.file.clone().close().await);
        self.inodes.closed(file.inode, file.writable);
        outcome
    }

    /// Everything that this mount has written to the inode so far is on the server.
    pub(super) async fn sync_writers(&self, inode: u64) -> Result<()> {
        if !self.inodes.has_writers(inode) {
            return Ok(());
        }
        let dirty: Vec<_> = {
            let files = self.files.read();
            let ours = |file: &&Arc<FileHandle<B::File>>| file.inode == inode && file.is_dirty();
            files.values().filter(ours).cloned().collect()
        };
        for file in dirty {
            self.sync(&file).await?;
        }
        Ok(())
    }

    async fn sync(&self, file: &FileHandle<B::File>) -> Result<()> {
        let written = file.written.load(Ordering::Acquire);
        match file.file.sync().await {
            Ok(mut attr) => {
                file.synced.fetch_max(written, Ordering::AcqRel);
                self.inodes.synced(&mut attr);
                Ok(())
            }
            Err(error) => {
                self.inodes.lost(file.inode);
                Err(error)
            }
        }
    }
}

fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        // The kernel sends the offsets of appends; here they would be applied twice.
        append: false,
        direct: flags & libc::O_DIRECT != 0,
        // The handler syncs after each write.
        sync: false,
    }
}
