//! What all parts of one client share.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use emberfs_proto::ids::{ClusterId, InodeId};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::chunk_io::ChunkIo;
use crate::delegations::Delegations;
use crate::early_read::Credit;
use crate::ends::Ends;
use crate::inode_state::InodeState;
use crate::locks::Book;
use crate::meta_rpc::{MetaRpc, rpc};
use crate::name_changes::NameChanges;
use crate::{Attr, ClientConfig, Creds};

/// See [`crate::Client::hear_of_parents`].
type HearOfParents = dyn Fn(&Attr) + Send + Sync;

/// The shared part of a client. Background tasks hold it weakly or end with `stop`.
pub(crate) struct Core {
    pub(crate) config: ClientConfig,
    pub(crate) cluster: ClusterId,
    pub(crate) root: InodeId,
    /// How long the server keeps this client's sessions without a word from it.
    pub(crate) lease: Duration,
    pub(crate) meta: MetaRpc,
    pub(crate) io: ChunkIo,
    pub(crate) budget: Budget,
    pub(crate) inodes: Mutex<HashMap<InodeId, Weak<InodeState>>>,
    pub(crate) locks: Book,
    pub(crate) ends: Ends,
    pub(crate) delegations: Delegations,
    pub(crate) names: NameChanges,
    pub(crate) early: Credit,
    /// Who is told of directories that were changed here.
    pub(crate) parents: OnceLock<Box<HearOfParents>>,
    /// Closes of files that were dropped without one, and ends of sessions that nobody waits for.
    pub(crate) closing: TaskTracker,
    pub(crate) runtime: Runtime,
    pub(crate) stop: CancellationToken,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Core {
    /// The state of an open file, if this client has it open.
    pub(crate) fn known(&self, inode: InodeId) -> Option<Arc<InodeState>> {
        self.inodes.lock().get(&inode).and_then(Weak::upgrade)
    }

    /// All open files.
    pub(crate) fn all_known(&self) -> Vec<Arc<InodeState>> {
        self.inodes
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// The state of a file that was just opened with these attributes.
    pub(crate) fn state_of(&self, attr: &Attr) -> Result<Arc<InodeState>> {
        let inode = InodeId(attr.inode);
        if let Some(state) = self.known(inode) {
            state.opened_again(attr);
            return Ok(state);
        }
        let fresh = Arc::new(InodeState::new(attr, self.config.keep_pieces)?);
        let mut inodes = self.inodes.lock();
        // Another open of the same file may have come first.
        if let Some(state) = inodes.get(&inode).and_then(Weak::upgrade) {
            drop(inodes);
            state.opened_again(attr);
            return Ok(state);
        }
        inodes.insert(inode, Arc::downgrade(&fresh));
        Ok(fresh)
    }

    /// The server has answered a change of attributes, or of names, those in a directory then, perhaps before it was durable.
    pub(crate) fn changed(
        self: &Arc<Self>,
        log: Option<pb::LogPosition>,
        parent: Option<InodeId>,
        attr: Option<&Attr>,
    ) {
        let Some(inode) = attr.map(|attr| InodeId(attr.inode)) else {
            return;
        };
        if self.names.made(log, [parent.unwrap_or(inode), inode]) {
            let core = self.clone();
            self.runtime.spawn(async move {
                if let Err(error) = core.settle_changes(None).await {
                    tracing::warn!(%error, "it is not known yet what a restart of the metadata server has lost");
                }
                core.names.asked();
            });
        }
    }

    /// Afterwards nothing is unsettled of what this client had changed in or of `inode`, `None`: of all inodes. It is durable, or known
    /// to be lost.
    pub(crate) async fn settle_changes(&self, inode: Option<InodeId>) -> Result<()> {
        let Some(starts) = self.names.unsettled(inode) else {
            return Ok(());
        };
        // The log is one for all: any inode does, and this one is always there.
        let request = pb::SyncRequest {
            inode: InodeId::ROOT.0,
            starts: starts.clone(),
            ..pb::SyncRequest::default()
        };
        let reply = rpc!(self.meta, &Creds::default(), Own, sync, request)?;
        let log = reply.log.ok_or_else(|| {
            let what = "the metadata server does not say how far its log is durable";
            Error::new(ErrorCode::Protocol, what)
        })?;
        self.names.settled(log, &starts, &reply.ends);
        Ok(())
    }

    pub(crate) fn told_parents(&self, parents: &[Attr]) {
        if let Some(hear) = self.parents.get() {
            parents.iter().for_each(hear);
        }
    }

    /// Removes entries of files that are no longer open.
    pub(crate) fn forget_closed(&self) {
        let mut inodes = self.inodes.lock();
        inodes.retain(|_, state| state.strong_count() > 0);
        if inodes.capacity() > 4 * inodes.len().max(1024) {
            inodes.shrink_to_fit();
        }
    }

    /// Puts what only this client knows into attributes that the server sent.
    pub(crate) fn overlay(&self, attr: &mut Attr) {
        if let Some(state) = self.known(InodeId(attr.inode)) {
            state.learn(attr);
            state.length.lock().overlay(attr);
        }
    }
}
