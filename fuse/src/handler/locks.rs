//! Locks of flock(2) and fcntl(2), which the metadata server keeps for all clients.
//!
//! The kernel says when they end: a flock with its open file, those of fcntl when a process closes any descriptor
//! of the file. Of descriptors that cannot write it does not tell every close (that spares a request for
//! each), so locks that were set through one of those end with its open file at the latest.

use emberfs_client::{LockInfo, LockKind, LockRequest, LockSpace, Result};
use emberfs_proto::{Error, ErrorCode};

use super::Handler;
use crate::backend::Backend;
use crate::protocol::request::Lock;

impl<B: Backend> Handler<B> {
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
            if lockers.insert(lock.owner) {
                self.note_lockers(&file.noted, &lockers);
            }
        }
        self.backend.set_lock(self.inode(node), request, wait).await
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
