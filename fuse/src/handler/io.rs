//! Open files.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use emberfs_client::{
    Attr, CreateFlags, Creds, LockSpace, LossesHeard, NewMode, OpenFlags, Result, SetAttr,
};
use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode};
use parking_lot::Mutex;

use super::inodes::Stamp;
use super::namespace::check_name;
use super::succession::Noted;
use super::{Handler, bad_handle};
use crate::backend::{Backend, OpenFile};
use crate::takeover::OpenRecord;

/// Files that are stored after their close at the same time; further closes wait.
const MAX_LATE: usize = 256;

/// An open file of the kernel's.
pub(super) struct FileHandle<F> {
    pub(super) inode: u64,
    pub(super) file: F,
    pub(super) writable: bool,
    /// As of open(2). With O_SYNC or O_DSYNC a write is durable before it returns. (For the mount option `sync` the
    /// kernel sends an fsync after each write.)
    pub(super) flags: i32,
    /// Writes begun.
    written: AtomicU64,
    /// How many of them were begun before the last successful sync.
    synced: AtomicU64,
    /// The state of the file at the open.
    stamp: Stamp,
    /// The kernel has acted on the open's reply.
    confirmed: AtomicBool,
    /// It counts as one that is stored after its close.
    late: AtomicBool,
    /// It may have a lock of flock(2).
    pub(super) flocked: AtomicBool,
    /// Who opened it.
    pub(super) creds: Creds,
    /// Who has set locks of fcntl(2) through this handle.
    pub(super) lockers: Mutex<BTreeSet<u64>>,
    /// Of which losses of attributes an fsync need not tell.
    heard: LossesHeard,
    /// For a successor of this process.
    pub(super) noted: Noted<OpenRecord>,
}

impl<F> FileHandle<F> {
    /// The first state of an open file.
    pub(super) fn new(attr: &Attr, file: F, flags: i32, creds: &Creds, heard: LossesHeard) -> Self {
        Self {
            inode: attr.inode,
            file,
            writable: open_flags(flags).write,
            flags,
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            stamp: Stamp::of(attr),
            confirmed: AtomicBool::new(false),
            late: AtomicBool::new(false),
            flocked: AtomicBool::new(false),
            creds: creds.clone(),
            lockers: Mutex::default(),
            heard,
            noted: Noted::default(),
        }
    }

    fn is_dirty(&self) -> bool {
        self.written.load(Ordering::Acquire) > self.synced.load(Ordering::Acquire)
    }

    /// Something is written through this handle, which a later sync is to cover.
    pub(super) fn begin_write(&self) {
        self.written.fetch_add(1, Ordering::AcqRel);
    }
}

/// What a write did beside writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// Attributes that the kernel has cached are not right any more.
    pub(crate) attr_stale: bool,
    /// Nor are pages: the bytes are elsewhere than the kernel put them.
    pub(crate) pages_stale: bool,
    /// Until the write has been answered, a successor of this process has to find these.
    pub(crate) kept: Bytes,
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
    /// Whether closes are to be told: there may be something to flush, or a lock to end.
    pub(crate) flushes: bool,
}

impl<B: Backend> Handler<B> {
    /// `flags` as of open(2).
    pub(crate) async fn open(&self, creds: &Creds, node: u64, flags: i32) -> Result<Opened> {
        let inode = self.real(node)?;
        let wanted = open_flags(flags);
        if wanted.truncate {
            if !wanted.write {
                self.check_not_running(inode.0)?;
            }
            self.sync_writers(inode.0).await?;
        }
        let cached = !wanted.write && !wanted.truncate && !self.bypasses_cache(flags);
        let believed = cached.then(|| self.inodes.to_be_read(inode.0)).flatten();
        let opened = self.backend.open(creds, inode, wanted, believed.as_ref());
        let (attr, file) = opened.await?;
        if wanted.truncate {
            self.inodes.touched(inode.0);
        }
        Ok(self.register(creds, attr, file, flags).1)
    }

    /// `flags` as of open(2).
    pub(crate) async fn create(
        &self,
        creds: &Creds,
        parent: u64,
        name: &[u8],
        mode: NewMode,
        flags: i32,
    ) -> Result<(Attr, Opened)> {
        check_name(name)?;
        let parent = self.real(parent)?;
        let wanted = create_flags(flags);
        let made = self.backend.create(creds, parent, name, mode, wanted);
        let (attr, file) = self.naming(parent, name, made).await?;
        self.inodes.touched(parent.0);
        let (attr, opened) = self.register(creds, attr, file, flags);
        Ok((self.show(attr), opened))
    }

    /// O_TMPFILE: a file without a name.
    pub(crate) async fn create_unnamed(
        &self,
        creds: &Creds,
        parent: u64,
        mode: NewMode,
        flags: i32,
    ) -> Result<(Attr, Opened)> {
        let parent = self.real(parent)?;
        let wanted = create_flags(flags);
        let (attr, file) = self
            .backend
            .create_unnamed(creds, parent, mode, wanted)
            .await?;
        let (attr, opened) = self.register(creds, attr, file, flags);
        Ok((self.show(attr), opened))
    }

    /// [`ErrorCode::TextBusy`] if programs here run the file. The kernel checks that itself, but of an open that truncates and
    /// does not write only afterwards.
    fn check_not_running(&self, inode: u64) -> Result<()> {
        let files = self.files.read();
        let runs =
            |file: &Arc<FileHandle<B::File>>| file.inode == inode && open_flags(file.flags).execute;
        if files.values().any(runs) {
            let what = format!("inode {inode} is a program that is running");
            return Err(Error::new(ErrorCode::TextBusy, what));
        }
        Ok(())
    }

    fn register(&self, creds: &Creds, mut attr: Attr, file: B::File, flags: i32) -> (Attr, Opened) {
        let writable = open_flags(flags).write;
        let verdict = self.inodes.opened(&mut attr, writable);
        let handle = self.draw_handle();
        let heard = self.backend.losses_heard(InodeId(attr.inode));
        let state = FileHandle::new(&attr, file, flags, creds, heard);
        self.files.write().insert(handle, Arc::new(state));
        let opened = Opened {
            handle,
            keep_cache: verdict.keep_cache,
            attr_stale: verdict.attr_stale,
            direct: self.bypasses_cache(flags),
            flushes: writable || self.locked.contains(attr.inode),
        };
        (attr, opened)
    }

    /// Where an append goes is not known before: no page may be filled with it.
    pub(super) fn bypasses_cache(&self, flags: i32) -> bool {
        self.direct_io || flags & (libc::O_DIRECT | libc::O_APPEND) != 0
    }

    /// The handle; that a request names it proves that the kernel has acted on its open.
    pub(super) fn file(&self, handle: u64) -> Result<Arc<FileHandle<B::File>>> {
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

    /// Writes all of `data`. `stranger`: whoever writes, if that has not the right to keep set-id bits. `append`: to the end, and
    /// `offset` is only where the kernel believes that to be.
    pub(crate) async fn write(
        &self,
        handle: u64,
        offset: u64,
        data: Bytes,
        (stranger, append): (Option<Creds>, bool),
    ) -> Result<Written> {
        let file = self.file(handle)?;
        let mode = stranger.and_then(|writer| self.inodes.mode_after_write(file.inode, &writer));
        if let Some(mode) = mode {
            self.take_set_ids(&file, mode).await?;
        }
        let len = data.len() as u64;
        file.begin_write();
        let at = if append {
            self.append(&file, data).await?
        } else {
            self.put(&file, offset, data).await?;
            offset
        };
        let cached = !self.bypasses_cache(file.flags);
        self.inodes
            .wrote(file.inode, at.saturating_add(len), cached);
        if file.flags & libc::O_DSYNC != 0 {
            self.sync(&file).await?;
        }
        Ok(Written {
            attr_stale: mode.is_some() || at != offset,
            pages_stale: at != offset,
            kept: Bytes::new(),
        })
    }

    /// Buffers bytes, where a successor of this process finds them or on the servers.
    pub(super) async fn put(
        &self,
        file: &FileHandle<B::File>,
        offset: u64,
        data: Bytes,
    ) -> Result<()> {
        let safe = self.note_write(&data, file.inode, offset);
        file.file.write(offset, data).await?;
        if !safe {
            self.sync(file).await?;
        }
        Ok(())
    }

    pub(super) async fn take_set_ids(&self, file: &FileHandle<B::File>, mode: u32) -> Result<()> {
        let changes = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        let inode = InodeId(file.inode);
        let through = file.writable.then_some(&file.file);
        let changed = self.backend.setattr(&file.creds, inode, changes, through);
        self.inodes.changed(&mut changed.await?);
        Ok(())
    }

    /// What close(2) waits for, so that it reports the errors of buffered writes; those of a small new file are stored when it
    /// is released, which nobody waits for. Ends the locks of fcntl(2) that `owner` has on the file.
    pub(crate) async fn flush(&self, handle: u64, owner: u64) -> Result<()> {
        let file = self.file(handle)?;
        let outcome = if file.is_dirty() && !self.closes_late(&file) {
            self.sync_all(&file).await
        } else {
            Ok(())
        };
        self.forget_locker(&file, owner);
        let inode = InodeId(file.inode);
        let unlocked = self.backend.release_locks(inode, owner, LockSpace::Posix);
        outcome.and(unlocked.await)
    }

    /// Whether close(2) returns before what was written is stored: then it is when the file is released.
    fn closes_late(&self, file: &FileHandle<B::File>) -> bool {
        let room = || self.late.load(Ordering::Relaxed) < MAX_LATE;
        if !file.file.may_close_late() || !(file.late.load(Ordering::Relaxed) || room()) {
            return false;
        }
        if !file.late.swap(true, Ordering::AcqRel) {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Writes through any handle of this mount count, and changes of attributes: fsync(2) is about the file.
    pub(crate) async fn fsync(&self, handle: u64) -> Result<()> {
        let file = self.file(handle)?;
        self.sync_writers(file.inode).await?;
        self.sync_attributes(&file).await
    }

    async fn sync_all(&self, file: &FileHandle<B::File>) -> Result<()> {
        self.sync(file).await?;
        self.sync_attributes(file).await
    }

    /// Mostly the report of the length has seen to that.
    async fn sync_attributes(&self, file: &FileHandle<B::File>) -> Result<()> {
        let synced = self.backend.sync_changes(InodeId(file.inode), &file.heard);
        synced.await
    }

    /// The last reference to the open is gone, and with it the flock of this owner.
    pub(crate) async fn release(&self, handle: u64, flock: Option<u64>) -> Result<()> {
        let file = self.file(handle)?;
        let outcome = if file.is_dirty() {
            // Written through a mapping after the last close, or closed early. An fsync of the inode still finds it.
            self.sync(&file).await
        } else {
            Ok(())
        };
        self.files.write().remove(&handle);
        if file.late.load(Ordering::Acquire) {
            self.late.fetch_sub(1, Ordering::Relaxed);
        }
        let lockers = self.take_lockers(&file);
        let posix = lockers.into_iter().map(|owner| (owner, LockSpace::Posix));
        let flock = flock.map(|owner| (owner, LockSpace::Flock));
        let mut outcome = outcome;
        for (owner, space) in posix.chain(flock) {
            let unlocked = self
                .backend
                .release_locks(InodeId(file.inode), owner, space);
            outcome = outcome.and(unlocked.await);
        }
        let outcome = outcome.and(file.file.clone().close().await);
        self.note_release(&file.noted);
        let last = self.inodes.closed(file.inode, file.writable);
        if last {
            outcome.and(self.stop_appending(file.inode).await)
        } else {
            outcome
        }
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

    pub(super) async fn sync(&self, file: &FileHandle<B::File>) -> Result<()> {
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

/// In the flags of an open that the kernel makes to run the file (`__FMODE_EXEC`).
const EXEC: i32 = 0x20;

fn create_flags(flags: i32) -> CreateFlags {
    let wanted = open_flags(flags);
    CreateFlags {
        exclusive: flags & libc::O_EXCL != 0,
        truncate: wanted.truncate,
        read: wanted.read,
        write: wanted.write,
    }
}

pub(super) fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        execute: access == libc::O_RDONLY && flags & EXEC != 0,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        // The kernel sends the offsets of appends; here they would be applied twice.
        append: false,
        direct: flags & libc::O_DIRECT != 0,
        // The handler syncs after each write.
        sync: false,
    }
}
