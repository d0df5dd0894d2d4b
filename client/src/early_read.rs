//! Small files that are read while they are opened.
//!
//! Who opens a small file reads it next. A caller that believes to know the file's attributes has its bytes asked for at the same time as
//! the open, and waits for one round trip instead of two. They count only if the answer to the open says that the file is
//! as it was believed to be; and because they were asked for after the open began, they hold all that was closed before it.
//! Where opens are not followed by reads this soon stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use emberfs_proto::ids::InodeId;
use emberfs_proto::{Error, ErrorCode, Result, pb};
use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::core::Core;
use crate::eager::spawn_eager;
use crate::inode_state::InodeState;
use crate::read::read_block;
use crate::read_ahead::Fetch;
use crate::stats::add;
use crate::{Attr, Client, Creds, File, OpenFlags};

/// Longest file that is read so, bytes: what the kernel asks for at once.
pub const MAX_EARLY_READ: u64 = 128 << 10;

/// Early reads in vain after which there are none for a while.
const CREDIT: i32 = 16;
/// After so many opens it is tried again.
const PROBE_AFTER: i32 = 32;

/// Whether early reads are worth their while.
pub(crate) struct Credit(AtomicI32);

impl Default for Credit {
    fn default() -> Self {
        Self(AtomicI32::new(CREDIT))
    }
}

impl Credit {
    /// Whether to read early now.
    fn spend(&self) -> bool {
        let next = |credit: i32| {
            Some(if credit <= -PROBE_AFTER {
                0
            } else {
                credit - 1
            })
        };
        let before = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        before.is_ok_and(|credit| credit > 0 || credit <= -PROBE_AFTER)
    }

    /// What was read early has been asked for.
    pub(crate) fn earn(&self) {
        let next = |credit: i32| Some((credit.max(0) + 2).min(CREDIT));
        // It always answers something.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

/// The state of a file's contents.
type State = (u64, u64, Option<pb::Time>, Option<pb::Time>);

fn state(attr: &Attr) -> State {
    (attr.size, attr.truncate_epoch, attr.mtime, attr.ctime)
}

/// A whole file on its way.
struct Early {
    believed: State,
    fetch: Fetch,
    permit: OwnedSemaphorePermit,
}

impl Client {
    /// As [`Client::open`], of a file that is about to be read. `believed`: its attributes, as far as the caller knows; if
    /// they are right and it is of at most [`MAX_EARLY_READ`] bytes, its first read is under way when this returns.
    pub async fn open_to_read(
        &self,
        creds: &Creds,
        inode: InodeId,
        flags: OpenFlags,
        believed: &Attr,
    ) -> Result<(Attr, File)> {
        let wanted = flags.read && !flags.direct && !flags.truncate && believed.inode == inode.0;
        let early = wanted.then(|| self.core.read_early(believed)).flatten();
        let (attr, file) = self.open(creds, inode, flags).await?;
        if let Some(early) = early
            && early.believed == state(&attr)
        {
            let state = file.state();
            let mut ahead = state.read_ahead.lock();
            // Another open may have brought a newer state. And under this lock a write drops what was read before it.
            let alone = state.open_handles().len() == 1;
            if alone && state.buffers.lock().is_clean() {
                ahead.put(attr.size, early.fetch, early.permit);
            }
        }
        Ok((attr, file))
    }
}

impl Core {
    fn read_early(self: &Arc<Self>, believed: &Attr) -> Option<Early> {
        let small = (1..=MAX_EARLY_READ).contains(&believed.size);
        // If it is open, something of it may be here that the chains do not have yet.
        let free = small && self.config.read_ahead_bytes > 0;
        if !free || self.known(InodeId(believed.inode)).is_some() || !self.early.spend() {
            return None;
        }
        let len = believed.size as usize;
        let file = InodeState::new(believed, false).ok()?;
        let permit = self.budget.for_read(len)?;
        add(&self.io.counters.prefetched_bytes, believed.size);
        let (tell, told) = oneshot::channel();
        let core = Arc::downgrade(self);
        spawn_eager(&self.runtime, async move {
            if let Some(core) = core.upgrade() {
                // Nobody may want it any more.
                let _ = tell.send(read_block(&core, &file, 0, len).await);
            }
        });
        let fetch = told.map(|told| {
            told.unwrap_or_else(|_| Err(Error::new(ErrorCode::Unavailable, "the client is gone")))
        });
        Some(Early {
            believed: state(believed),
            fetch: fetch.boxed().shared(),
            permit,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_goes_on_and_what_is_not_is_tried_now_and_then() {
        let credit = Credit::default();
        for _ in 0..1000 {
            assert!(credit.spend());
            credit.earn();
        }
        let mut spent = 0;
        for _ in 0..1000 {
            spent += i32::from(credit.spend());
        }
        assert_eq!(spent, CREDIT + (1000 - CREDIT) / (PROBE_AFTER + 1));
        while !credit.spend() {}
        credit.earn();
        assert!(credit.spend() && credit.spend(), "worth it again");
    }
}
