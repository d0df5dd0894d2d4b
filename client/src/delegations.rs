//! New files that this client has to itself until others ask for them: what was written to one may be reported after
//! close(2) has returned.
//!
//! The metadata server gives the delegation of a file with the answer to its creation, to clients that watch, and keeps
//! others from seeing the file until it has *recalled* it: then everything is stored and reported, and every later close
//! waits for that as usual. So it is, for all files, when the watch breaks. A recall may come before the answer that it is about.
//!
//! What a program was not told of at close(2) it must not miss: close waits as usual when the cluster is nearly full, when
//! the file is large, and after a write has failed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use emberfs_proto::ids::InodeId;
use emberfs_proto::wire::metadata::MetadataCaller;
use emberfs_proto::{Result, pb};
use futures::StreamExt;
use parking_lot::Mutex;

use crate::core::Core;
use crate::inode_state::{Handle, InodeState};
use crate::meta_rpc::{Effect, rpc};
use crate::write_buffer::Why;
use crate::{Creds, File};

/// Larger files are stored before close(2) returns: their programs do not wait for long, compared with what they wrote.
const MAX_BYTES: u64 = 1 << 20;
/// Close waits if less than this is free, or less than a fiftieth of the cluster.
const MIN_FREE: u64 = 1 << 30;
/// Longest wait for the server to say how much is free.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Files of a recall that are stored at the same time.
const PARALLEL: usize = 32;
/// Most inodes of one request.
const BATCH: usize = 1024;

/// See the module.
#[derive(Default)]
pub(crate) struct Delegations {
    state: Mutex<State>,
    /// There is so much room that nothing will be missed.
    roomy: AtomicBool,
    /// One was given since that was found out.
    used: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Recalls are heard.
    watching: bool,
    /// Files that are being made.
    making: usize,
    /// Recalled while files were being made: perhaps one of those.
    early: HashSet<InodeId>,
    /// Some may have been missed while files were being made.
    missed: bool,
}

/// A file is being made.
pub(crate) struct Making<'a>(&'a Delegations);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.making -= 1;
        if state.making == 0 {
            state.early.clear();
            state.missed = false;
        }
    }
}

impl Delegations {
    /// Whether to ask for the delegation of a file that is about to be made; to be kept until that is done.
    pub(crate) fn making(&self) -> Option<Making<'_>> {
        let mut state = self.state.lock();
        state.watching.then(|| {
            state.making += 1;
            Making(self)
        })
    }

    /// The server has given one for an open that is known to its inode; whether it still holds.
    pub(crate) fn given(&self, inode: InodeId, handle: &Handle) -> bool {
        let state = self.state.lock();
        let holds = state.watching && !state.missed && !state.early.contains(&inode);
        handle.delegated.store(holds, Ordering::SeqCst);
        self.used.store(true, Ordering::Relaxed);
        holds
    }

    fn missed(&self) {
        let mut state = self.state.lock();
        state.missed = state.making > 0;
    }

    fn recalled(&self, inodes: &[InodeId]) {
        let mut state = self.state.lock();
        if state.making > 0 {
            state.early.extend(inodes);
        }
    }
}

impl Core {
    /// Recalls are heard from now on, or not any more.
    pub(crate) fn hears_recalls(self: &Arc<Self>, hears: bool) {
        let heard = std::mem::replace(&mut self.delegations.state.lock().watching, hears);
        if heard && !hears {
            self.return_all();
        }
        self.delegations.used.store(true, Ordering::Relaxed);
    }

    /// Recalls may have been missed.
    pub(crate) fn return_all(self: &Arc<Self>) {
        self.delegations.missed();
        let delegated = |state: &Arc<InodeState>| state.delegated().next().is_some();
        let known = self.all_known().into_iter().filter(delegated);
        self.recalled(known.map(|state| state.inode).collect());
    }

    /// Stores and reports what was written to these, then returns their delegations.
    pub(crate) fn recalled(self: &Arc<Self>, inodes: Vec<InodeId>) {
        if inodes.is_empty() {
            return;
        }
        self.delegations.recalled(&inodes);
        let core = self.clone();
        let work = async move {
            let reports = inodes.clone().into_iter();
            let reports = futures::stream::iter(reports).map(|inode| core.undelegate(inode));
            reports.buffer_unordered(PARALLEL).collect::<()>().await;
            for batch in inodes.chunks(BATCH) {
                if let Err(error) = core.give_back(batch).await {
                    // The server takes them after a while.
                    tracing::warn!(%error, "the metadata server could not be told that delegations are returned");
                }
            }
        };
        self.closing.spawn_on(work, &self.runtime);
    }

    async fn undelegate(self: &Arc<Self>, inode: InodeId) {
        let Some(state) = self.known(inode) else {
            return;
        };
        // First this, so that whoever closes now waits, or is waited for here.
        for handle in state.delegated() {
            handle.delegated.store(false, Ordering::SeqCst);
        }
        self.settle(&state, Why::Flush).await;
        if let Some(writer) = state.writer()
            && let Err(error) = self.report(&state, &writer).await
        {
            tracing::warn!(%inode, %error, "what was written to a file could not be reported");
        }
    }

    async fn give_back(&self, inodes: &[InodeId]) -> Result<()> {
        let request = pb::CloseManyRequest {
            caller: None,
            sessions: Vec::new(),
            returned: inodes.iter().map(|inode| inode.0).collect(),
        };
        rpc!(self.meta, &Creds::default(), Reads, close_many, request).map(drop)
    }

    /// Looks how much room there is, if that matters.
    pub(crate) async fn look_for_room(&self) {
        if !self.delegations.used.swap(false, Ordering::Relaxed) {
            return;
        }
        let root = self.root.0;
        let send = |server: MetadataCaller, caller| {
            let request = pb::StatFsRequest {
                caller: Some(caller),
                inode: root,
            };
            async move { server.stat_fs(request).await }
        };
        let creds = Creds::default();
        let asked = self
            .meta
            .run_within(Some(ASK_LIMIT), "statfs", &creds, Effect::Reads, send);
        let roomy = asked
            .await
            .is_ok_and(|room| room.free >= MIN_FREE.max(room.capacity / 50));
        self.delegations.roomy.store(roomy, Ordering::Relaxed);
    }
}

impl File {
    /// Whether close(2) may return before what was written is stored and reported: nobody else sees the file before that. The
    /// caller goes on to [`File::close`], and closes as usual if this process may end without that.
    pub fn may_close_late(&self) -> bool {
        let (core, handle) = (self.core(), self.handle());
        handle.delegated.load(Ordering::SeqCst)
            && core.delegations.roomy.load(Ordering::Relaxed)
            && self.size() <= MAX_BYTES
            && self.check_failure().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const FILE: InodeId = InodeId(7);

    fn handle() -> Handle {
        Handle {
            session: AtomicU64::new(1),
            read: false,
            execute: false,
            write: true,
            creds: Creds::default(),
            closed: AtomicBool::new(false),
            delegated: AtomicBool::new(false),
        }
    }

    #[test]
    fn a_recall_that_comes_before_the_answer_counts() {
        let all = Delegations::default();
        assert!(all.making().is_none(), "nothing is heard yet");
        all.state.lock().watching = true;
        let (one, other) = (all.making(), all.making());
        all.recalled(&[FILE]);
        drop(one);
        let (held, lost) = (handle(), handle());
        assert!(!all.given(FILE, &lost) && !lost.delegated.load(Ordering::SeqCst));
        assert!(all.given(InodeId(8), &held) && held.delegated.load(Ordering::SeqCst));
        drop(other);
        // Nobody is left whom it could be about.
        all.recalled(&[FILE]);
        assert!(all.state.lock().early.is_empty());
        let making = all.making();
        all.missed();
        assert!(!all.given(InodeId(10), &held), "its recall may be lost");
        drop(making);
        assert!(all.given(InodeId(11), &held));
        all.state.lock().watching = false;
        assert!(!all.given(InodeId(9), &held));
    }
}
