//! Whole-range locks without splitting: enough to see what the kernel asks for.

use emberfs_client::{LockInfo, LockKind, LockRequest, LockSpace, Result};
use emberfs_proto::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::error;

#[derive(Default)]
pub(crate) struct Locks {
    held: Mutex<Vec<(u64, LockRequest)>>,
    changes: watch::Sender<u64>,
}

impl Locks {
    /// How many are held.
    pub(crate) fn held(&self) -> usize {
        self.held.lock().len()
    }

    pub(crate) fn conflict(&self, inode: u64, wanted: &LockRequest) -> Option<LockInfo> {
        let held = self.held.lock();
        let found = held.iter().find(|(at, lock)| {
            let apart = lock.end < wanted.start || wanted.end < lock.start;
            let exclusive = [lock.kind, wanted.kind].contains(&LockKind::Exclusive);
            *at == inode
                && lock.space == wanted.space
                && lock.owner != wanted.owner
                && !apart
                && exclusive
        });
        found.map(|(_, lock)| LockInfo {
            kind: lock.kind,
            start: lock.start,
            end: lock.end,
            pid: lock.pid,
        })
    }

    pub(crate) async fn set(&self, inode: u64, wanted: LockRequest, wait: bool) -> Result<()> {
        if wanted.kind == LockKind::Unlock {
            self.release(inode, wanted.owner, wanted.space);
            return Ok(());
        }
        let mut changes = self.changes.subscribe();
        while self.conflict(inode, &wanted).is_some() {
            if !wait {
                return Err(error(ErrorCode::LockHeld));
            }
            let _ = changes.changed().await;
        }
        self.held.lock().push((inode, wanted));
        Ok(())
    }

    pub(crate) fn release(&self, inode: u64, owner: u64, space: LockSpace) {
        let released = |(at, lock): &(u64, LockRequest)| {
            *at == inode && lock.owner == owner && lock.space == space
        };
        self.held.lock().retain(|lock| !released(lock));
        self.changes.send_modify(|count| *count += 1);
    }
}
