//! O_APPEND that is atomic between mounts: the end of the file belongs to one mount at a time.
//!
//! A mount that appends takes a lock of its own kind on the file, finds the end, and keeps the lock: as long as nobody
//! else appends, that is all it costs. When another mount wants it, the metadata server says so; then what was written
//! is made known, with its length, and the lock is given back. The kernel's own idea of the end does not count.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use emberfs_client::{LockKind, LockRequest, LockSpace, Result};
use emberfs_proto::ids::InodeId;
use parking_lot::Mutex;

use super::Handler;
use super::io::FileHandle;
use crate::backend::{Backend, OpenFile};

/// The files that this mount appends to.
#[derive(Default)]
pub(super) struct Appends {
    inodes: Mutex<HashMap<u64, Arc<Append>>>,
}

/// One of them.
#[derive(Default)]
struct Append {
    /// Whether this mount has the lock. One append at a time, and none while the lock changes hands.
    held: tokio::sync::Mutex<bool>,
    /// Another mount wants it.
    wanted: AtomicBool,
}

impl Appends {
    fn of(&self, inode: u64) -> Arc<Append> {
        self.inodes.lock().entry(inode).or_default().clone()
    }

    /// An earlier process of this mount has the lock.
    pub(super) fn take_over(&self, inode: u64) {
        let append = Append {
            held: tokio::sync::Mutex::new(true),
            wanted: AtomicBool::new(false),
        };
        self.inodes.lock().insert(inode, Arc::new(append));
    }

    fn known(&self, inode: u64) -> Option<Arc<Append>> {
        self.inodes.lock().get(&inode).cloned()
    }
}

/// The lock: whole files, one owner per mount.
fn lock(kind: LockKind) -> LockRequest {
    LockRequest {
        space: LockSpace::Append,
        owner: 0,
        pid: std::process::id(),
        kind,
        start: 0,
        end: u64::MAX,
    }
}

impl<B: Backend> Handler<B> {
    /// Writes at the end of the file, wherever that is; answers where it was.
    pub(super) async fn append(&self, file: &FileHandle<B::File>, data: Bytes) -> Result<u64> {
        let append = self.appends.of(file.inode);
        let mut held = append.held.lock().await;
        if !*held {
            let inode = InodeId(file.inode);
            let exclusive = lock(LockKind::Exclusive);
            self.backend.set_lock(inode, exclusive, true).await?;
            *held = true;
            // From here on nobody else moves the end.
            self.backend.getattr(inode).await?;
        }
        let end = file.file.size();
        self.put(file, end, data).await?;
        // Without a watch nobody would say that it is wanted.
        if append.wanted.load(Ordering::Acquire) || !self.inodes.is_watched() {
            self.give_back(file.inode, &append, &mut held).await?;
        }
        Ok(end)
    }

    /// Another mount wants to append to this file.
    pub(crate) async fn append_wanted(&self, inode: u64) -> Result<()> {
        let Some(append) = self.appends.known(inode) else {
            return Ok(());
        };
        if append.wanted.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut held = append.held.lock().await;
        self.give_back(inode, &append, &mut held).await
    }

    /// Files whose end this mount may have.
    pub(crate) fn appended(&self) -> Vec<u64> {
        self.appends.inodes.lock().keys().copied().collect()
    }

    async fn give_back(&self, inode: u64, append: &Append, held: &mut bool) -> Result<()> {
        append.wanted.store(false, Ordering::Release);
        if !*held {
            return Ok(());
        }
        // Who comes next must find these bytes before its own.
        self.sync_writers(inode).await?;
        let unlocked = self
            .backend
            .set_lock(InodeId(inode), lock(LockKind::Unlock), false);
        unlocked.await?;
        *held = false;
        Ok(())
    }

    /// The last open of the file here is gone; what was written through it is on the server.
    pub(super) async fn stop_appending(&self, inode: u64) -> Result<()> {
        let append = self.appends.inodes.lock().remove(&inode);
        match append {
            Some(append) => {
                let mut held = append.held.lock().await;
                self.give_back(inode, &append, &mut held).await
            }
            None => Ok(()),
        }
    }
}
