//! Locks of flock(2) and fcntl(2), which the metadata server keeps for all clients.
//!
//! The kernel says when they end: a flock with its open file, those of fcntl when a process closes any descriptor
//! of the file. Of descriptors that cannot write and were opened when this mount had no such locks on the file, it does not tell
//! every close (that spares a request for each); locks that were set through one of those end with its open file at the latest.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use emberfs_client::{LockInfo, LockKind, LockRequest, LockSpace, Result};
use emberfs_proto::{Error, ErrorCode};

use parking_lot::Mutex;

use super::Handler;
use super::io::FileHandle;
use crate::backend::Backend;
use crate::protocol::request::Lock;

/// Files with locks of fcntl(2), and through how many open files of this mount they were set.
#[derive(Default)]
pub(super) struct Locked(Mutex<HashMap<u64, usize>>);

impl Locked {
    pub(super) fn contains(&self, inode: u64) -> bool {
        self.0.lock().contains_key(&inode)
    }

    pub(super) fn add(&self, inode: u64) {
        *self.0.lock().entry(inode).or_default() += 1;
    }

    fn remove(&self, inode: u64) {
        let mut all = self.0.lock();
        if let Some(count) = all.get_mut(&inode) {
            *count -= 1;
            if *count == 0 {
                all.remove(&inode);
            }
        }
    }
}

impl<B: Backend> Handler<B> {
    /// This owner's locks on the file end, as far as they were set through this handle.
    pub(super) fn forget_locker(&self, file: &FileHandle<B::File>, owner: u64) {
        let mut lockers = file.lockers.lock();
        if lockers.remove(&owner) && lockers.is_empty() {
            self.locked.remove(file.inode);
        }
    }

    /// The same of all owners.
    pub(super) fn take_lockers(&self, file: &FileHandle<B::File>) -> BTreeSet<u64> {
        let lockers = std::mem::take(&mut *file.lockers.lock());
        if !lockers.is_empty() {
            self.locked.remove(file.inode);
        }
        lockers
    }

    /// A lock that is in the way of this one, if any.
    pub(crate) async fn test_lock(&self, node: u64, lock: Lock) -> Result<Option<LockInfo>> {
        let request = request(&lock)?;
        self.backend.test_lock(self.inode(node), request).await
    }

    /// Sets or ends a lock. Dropping this while it waits gives the wait up.
    pub(crate) async fn set_lock(&self, node: u64, lock: Lock, wait: bool) -> Result<()> {
        let request = request(&lock)?;
        let file = self.file(lock.handle)?;
        if request.space == LockSpace::Posix && request.kind != LockKind::Unlock {
            let mut lockers = file.lockers.lock();
            if lockers.is_empty() {
                self.locked.add(file.inode);
            }
            if lockers.insert(lock.owner) {
                self.note_lockers(&file.noted, &lockers);
            }
        }
        let inode = self.inode(node);
        if request.space != LockSpace::Flock {
            return self.backend.set_lock(inode, request, wait).await;
        }
        let locks = request.kind != LockKind::Unlock;
        if locks && file.flocked.load(Ordering::Acquire) {
            let converted = self.backend.set_lock(inode, request, false).await;
            match converted {
                Err(error) if error.code == ErrorCode::LockHeld => {}
                converted => return converted,
            }
            // As Linux does it: the lock that is to become another one is given up first, and is lost if that fails. So two who
            // share a lock and both want it alone do not wait for each other.
            let released = LockRequest {
                kind: LockKind::Unlock,
                ..request
            };
            self.backend.set_lock(inode, released, false).await?;
        }
        if locks {
            // Whatever comes of it: giving up what is not there does no harm.
            file.flocked.store(true, Ordering::Release);
        }
        self.backend.set_lock(inode, request, wait).await?;
        if !locks {
            file.flocked.store(false, Ordering::Release);
        }
        Ok(())
    }
}

fn request(lock: &Lock) -> Result<LockRequest> {
    let kind = match lock.kind {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        libc::F_UNLCK => LockKind::Unlock,
        other => {
            let what = format!("{other} is no type of a lock");
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
    };
    let space = if lock.flock {
        LockSpace::Flock
    } else {
        LockSpace::Posix
    };
    Ok(LockRequest {
        space,
        owner: lock.owner,
        pid: lock.pid,
        kind,
        start: lock.start,
        end: lock.end,
    })
}
