//! Taking a client over from an earlier process, and leaving it to a later one: open files.
//!
//! The metadata server keeps the sessions of the earlier process until a lease after this one has attached. Until
//! then whatever was open is opened again here, unlinked files too, whoever may open them now.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use emberfs_proto::ids::{InodeId, NodeId};
use emberfs_proto::{Result, pb};
use futures::StreamExt;

use crate::core::Core;
use crate::inode_state::InodeState;
use crate::meta_rpc::{attr_of, rpc};
use crate::retry::Patience;
use crate::write_buffer::Why;
use crate::{Attr, Client, Creds, File, OpenFlags};

/// Files that are flushed, and servers that are greeted, at the same time.
const PARALLEL: usize = 16;
/// Longest wait for all storage servers to shut an earlier process out. They let this one in after ten seconds at the
/// latest; a dead one leaves the map.
const SHUT_OUT_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for one connection.
const GREET: Duration = Duration::from_secs(5);

impl Client {
    /// For a process that acts as a client after another one: afterwards nothing that the earlier process sent to a
    /// storage server, and that may still lie in a socket, changes a file. The metadata server has shut it out since
    /// [`Self::connect`]. Before this, a truncation could be undone by an earlier write.
    ///
    /// Fails if a server that is alive by the cluster map is not reached within 30 s. It shuts the earlier process out
    /// when it is reached.
    pub async fn shut_out_earlier(&self) -> Result<()> {
        let nodes: Vec<NodeId> = self.map().nodes.keys().copied().collect();
        let greetings = futures::stream::iter(nodes).map(|node| self.core.greet(node));
        let mut greetings = greetings.buffer_unordered(PARALLEL);
        let mut outcome = Ok(());
        while let Some(greeted) = greetings.next().await {
            outcome = outcome.and(greeted);
        }
        outcome
    }

    /// From now on `note` is told of each change of names or attributes that is answered before it is durable: its start of the
    /// metadata server, and its commit. For [`Self::inherit_changes`] of a later process, which needs the last one. Only the first call
    /// counts.
    pub fn note_changes(&self, note: impl Fn(u64, u64) + Send + Sync + 'static) {
        self.core.names.note_by(Box::new(note));
    }

    /// An earlier process of this client has noted this change: if it was lost, [`Self::sync_changes`] tells so of every inode.
    pub fn inherit_changes(&self, start: u64, commit: u64) {
        self.core.names.inherit(start, commit);
    }

    /// Opens what an earlier process of this client had open when it died: it is not asked again who may. Requests
    /// through the file are made as `creds`.
    ///
    /// The earlier process may have stored bytes of a file that it had open for writing, and told nobody of their end.
    /// So the length is taken from the chunks; the file counts as changed now, and as one that may have holes.
    pub async fn resume_file(
        &self,
        inode: InodeId,
        flags: OpenFlags,
        creds: &Creds,
    ) -> Result<(Attr, File)> {
        self.take_file(inode, flags, creds, flags.write).await
    }

    /// As [`Self::resume_file`], of a process that has told of everything it wrote ([`Self::hand_over`]): only opens.
    pub async fn reopen_file(
        &self,
        inode: InodeId,
        flags: OpenFlags,
        creds: &Creds,
    ) -> Result<(Attr, File)> {
        self.take_file(inode, flags, creds, false).await
    }

    async fn take_file(
        &self,
        inode: InodeId,
        flags: OpenFlags,
        creds: &Creds,
        settle: bool,
    ) -> Result<(Attr, File)> {
        let request = pb::OpenRequest {
            caller: None,
            inode: inode.0,
            read: flags.read || !flags.write,
            write: flags.write,
            truncate: false,
            execute: false,
        };
        let mut reply = rpc!(self.core.meta, &Creds::default(), Own, open, request)?;
        if settle {
            match self.core.settle_length(&reply, inode, creds).await {
                Ok(attr) => reply.attr = Some(attr),
                Err(error) => {
                    self.core.end_soon(inode, reply.session);
                    return Err(error);
                }
            }
        }
        self.opened(creds, &reply, flags)
    }

    /// Leaves this client to a later process: everything that was written is stored and reported, then this process
    /// stops. Nothing ends: files stay open and locks held at the servers, for one lease.
    ///
    /// Fails if something could not be stored or reported; then the later process has to take files with
    /// [`Self::resume_file`]. Waits as long as [`Self::shutdown`]. Calls that are made meanwhile may fail.
    pub async fn hand_over(&self) -> Result<()> {
        let flushes = futures::stream::iter(self.core.all_known())
            .map(|state| async move { self.core.leave(&state).await });
        let mut flushes = flushes.buffer_unordered(PARALLEL);
        let work = async {
            let mut outcome = Ok(());
            while let Some(flushed) = flushes.next().await {
                outcome = outcome.and(flushed);
            }
            self.core.closing.close();
            self.core.closing.wait().await;
            outcome
        };
        let outcome = self.within_shutdown(work).await;
        for state in self.core.all_known() {
            // Dropping them must not end their sessions.
            state.abandon();
        }
        self.core.stop.cancel();
        outcome
    }
}

impl Core {
    /// Connects to a storage server, or finds that it is dead.
    async fn greet(&self, id: NodeId) -> Result<()> {
        let mut patience = Patience::new(Some(SHUT_OUT_LIMIT), &self.stop);
        loop {
            let map = self.io.map.current();
            let Some(node) = map.nodes.get(&id).filter(|node| node.alive) else {
                return Ok(());
            };
            let greeted = self
                .io
                .greet(&node.data_addr, patience.attempt(GREET))
                .await;
            let Err(error) = greeted else {
                return Ok(());
            };
            let what = || format!("shutting out an earlier process at storage node {id}");
            let newer = self.io.map.newer(map.version);
            patience.wait(error, what, newer).await?;
        }
    }

    /// The attributes of a file that was just opened, with the length that its chunks say.
    async fn settle_length(
        &self,
        opened: &pb::OpenReply,
        inode: InodeId,
        creds: &Creds,
    ) -> Result<Attr> {
        let request = pb::SyncRequest {
            caller: None,
            inode: inode.0,
            session: opened.session,
            end: None,
            truncate_epoch: attr_of(opened.attr)?.truncate_epoch,
            // Also where it does not grow: bytes that were changed before its end are news to others.
            mtime: Some(SystemTime::now().into()),
            sparse: true,
            settle: true,
            starts: Vec::new(),
        };
        attr_of(rpc!(self.meta, creds, Own, sync, request)?.attr)
    }

    /// Stores and reports what was written to a file.
    async fn leave(self: &Arc<Self>, state: &Arc<InodeState>) -> Result<()> {
        let _gate = state.gate.write().await;
        let before = state.buffers.lock().failures().0;
        self.settle(state, Why::Flush).await;
        if let Some(writer) = state.writer() {
            self.report(state, &writer).await?;
        }
        match state.buffers.lock().failures() {
            (count, Some(error)) if count > before => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

impl File {
    /// Gives the file a session of this process, whoever may open it now. For a file whose open, or create, an earlier
    /// process had made and was answered from the server's record: its session ends with that process.
    pub async fn renew(&self) -> Result<()> {
        self.open()?;
        let (core, state, handle) = (self.core(), self.state(), self.handle());
        let old = handle.session.load(Ordering::Acquire);
        core.reopen(state, handle, &Creds::default()).await?;
        core.end_soon(state.inode, old);
        Ok(())
    }
}
