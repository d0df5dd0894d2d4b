//! Drives one target's [`Replica`] with the engine, the network and timers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use emberfs_proto::checksum::verify_fragments;
use emberfs_proto::cluster::{ClusterMap, LocalState, PublicState, Target};
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion, TargetId};
use emberfs_proto::layout::MAX_CHUNK_SIZE;
use emberfs_proto::wire::{Call, Channel, Opcode};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::repair::{Cause, is_damage};
use super::resync::Progress;
use super::{Node, data, resync};
use crate::chain::{
    Action, Content, Event, Message, OpId, Outcome, ReadPlan, Replica, RequestId, UpdateKind,
};
use crate::engine::{ChunkMeta, Engine, Prepare, ReadVersion};

/// Longest wait for a successor's answer; a chain change ends the wait earlier.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(30);
/// Chunks per page when a whole target is listed.
const LIST_PAGE: usize = 1024;

/// One target of this node.
pub(crate) struct TargetHost {
    id: TargetId,
    engine: Engine,
    node: Weak<Node>,
    /// Actions are carried out under this lock (none of them waits), so their order is the machine's.
    core: Mutex<Core>,
    next_request: AtomicU64,
    /// It has stopped serving for good, because it is about to leave its chain.
    stopped: AtomicBool,
    /// Of the resync that this target leads.
    pub(super) progress: Progress,
}

struct Core {
    replica: Replica,
    waiting: HashMap<RequestId, oneshot::Sender<Result<Outcome>>>,
    /// The sendings of each piece of work that wait for an answer, with their attempts.
    sends: HashMap<OpId, Vec<(u32, AbortHandle)>>,
    resync: Option<AbortHandle>,
}

impl TargetHost {
    pub(super) fn new(node: &Arc<Node>, id: TargetId, engine: Engine) -> Arc<Self> {
        Arc::new(Self {
            id,
            engine,
            node: Arc::downgrade(node),
            core: Mutex::new(Core {
                replica: Replica::new(id),
                waiting: HashMap::new(),
                sends: HashMap::new(),
                resync: None,
            }),
            next_request: AtomicU64::new(1),
            stopped: AtomicBool::new(false),
            progress: Progress::default(),
        })
    }

    pub(super) fn id(&self) -> TargetId {
        self.id
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn node(&self) -> Result<Arc<Node>> {
        self.node.upgrade().ok_or_else(stopping)
    }

    /// Local state and adopted chain version.
    pub(super) fn local(&self) -> (LocalState, ChainVersion) {
        let core = self.core.lock();
        let version = core.replica.view().map_or(ChainVersion(0), |v| v.version);
        (core.replica.local(), version)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(super) fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::SeqCst);
    }

    pub(super) fn is_settled(&self) -> bool {
        self.core.lock().replica.is_settled()
    }

    /// See [`Replica::is_mirrored`].
    pub(super) fn is_mirrored(&self, version: ChainVersion, key: ChunkKey) -> bool {
        self.core.lock().replica.is_mirrored(version, key)
    }

    pub(super) fn refused(&self) -> u64 {
        self.core.lock().replica.refused()
    }

    /// Hands an event to the machine and carries out what it wants.
    pub(super) fn drive(self: &Arc<Self>, event: Event) {
        let Ok(node) = self.node() else { return };
        let mut core = self.core.lock();
        for action in core.replica.handle(event, node.lease.is_valid()) {
            self.perform(&node, &mut core, action);
        }
    }

    /// Hands a request to the machine and waits for its answer.
    pub(super) async fn request(
        self: &Arc<Self>,
        event: impl FnOnce(RequestId) -> Event,
    ) -> Result<Outcome> {
        let request = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let (done, answer) = oneshot::channel();
        self.core.lock().waiting.insert(request, done);
        self.drive(event(request));
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    pub(super) fn read_plan(&self, key: ChunkKey, version: ChainVersion) -> Result<ReadPlan> {
        let lease = self.node()?.lease.is_valid();
        self.core.lock().replica.read_plan(key, version, lease)
    }

    pub(super) fn check_serving(&self, version: ChainVersion) -> Result<()> {
        let lease = self.node()?.lease.is_valid();
        self.core
            .lock()
            .replica
            .check_serving(version, lease)
            .map(|_| ())
    }

    pub(super) fn tail_plan(&self, key: ChunkKey, version: ChainVersion) -> Result<ReadPlan> {
        let lease = self.node()?.lease.is_valid();
        self.core.lock().replica.tail_plan(key, version, lease)
    }

    /// Stops serving at once and asks the manager to take this target out of its chain; it comes back by
    /// resync. Refused unless another replica serves. Returns the chain version that it leaves.
    pub(super) fn leave_to_resync(self: &Arc<Self>, map: &ClusterMap) -> Result<ChainVersion> {
        let refused = |why: String| Err(Error::new(ErrorCode::ChainUnavailable, why));
        let Some(view) = self.view() else {
            return refused(format!("target {} knows no chain yet; try again", self.id));
        };
        let chain = map.chain(view.chain)?;
        if view.state != PublicState::Serving || chain.version != view.version {
            return refused(format!(
                "target {} is not serving under the newest map; wait until `emberfs status` shows it serving",
                self.id
            ));
        }
        let alive = |t: &&Target| map.node_of(t).is_some_and(|node| node.alive);
        if !map.serving(chain).filter(alive).any(|t| t.id != self.id) {
            return refused(format!(
                "target {} is the only one that serves chain {}; bring another replica back first",
                self.id, view.chain
            ));
        }
        // As if its disk had failed; out of the chain it is like any that returns.
        self.drive(Event::Failed);
        Ok(view.version)
    }

    /// Adopted chain version and public state as this target sees them.
    pub(super) fn view(&self) -> Option<crate::chain::View> {
        self.core.lock().replica.view().cloned()
    }

    fn perform(self: &Arc<Self>, node: &Arc<Node>, core: &mut Core, action: Action) {
        match action {
            Action::Load { op, key } => self.run(move |host| async move {
                let result = host.engine.meta(host.id, key).await;
                Event::Loaded { op, result }
            }),
            Action::Prepare { op, key, prepare } => self.run(move |host| async move {
                let result = host.prepare(key, prepare).await;
                Event::Prepared { op, result }
            }),
            Action::ReadContent { op, key, version } => self.run(move |host| async move {
                let result = host.content(key, version).await;
                Event::Content { op, result }
            }),
            Action::Commit {
                op,
                key,
                version,
                chain,
            } => self.run(move |host| async move {
                let result = host
                    .engine
                    .commit(host.id, key, version, chain)
                    .await
                    .map(|_| ());
                Event::Committed { op, result }
            }),
            Action::Drop { op, key } => self.run(move |host| async move {
                let result = host.engine.drop_chunk(host.id, key).await;
                Event::Committed { op, result }
            }),
            Action::Abort { op, key, version } => self.run(move |host| async move {
                let result = host.engine.abort(host.id, key, version).await.map(|_| ());
                Event::Aborted { op, result }
            }),
            Action::Recover { chain_version } => self.run(move |host| async move {
                let result = host.recover(chain_version).await;
                Event::Recovered {
                    chain_version,
                    result,
                }
            }),
            Action::RetryAfter { op, attempt, delay } => self.run(move |_| async move {
                tokio::time::sleep(delay).await;
                Event::RetryDue { op, attempt }
            }),
            Action::Send {
                op,
                attempt,
                to,
                chain_version,
                message,
            } => {
                let handle = self.spawn(move |host| async move {
                    let result = host.send(to, chain_version, message).await;
                    host.sent(op, attempt);
                    Event::Forwarded {
                        op,
                        attempt,
                        result,
                    }
                });
                core.sends.entry(op).or_default().push((attempt, handle));
            }
            Action::CancelSend { op } => {
                for (_, send) in core.sends.remove(&op).into_iter().flatten() {
                    send.abort();
                }
            }
            Action::StartResync {
                chain_version,
                to,
                busy,
            } => {
                if let Some(old) = core.resync.take() {
                    old.abort();
                }
                let host = self.clone();
                let task = tokio::spawn(resync::run(host, chain_version, to, busy));
                core.resync = Some(task.abort_handle());
            }
            Action::Reply { request, result } => {
                if let Some(waiter) = core.waiting.remove(&request) {
                    // The connection may have gone; the work is done all the same.
                    let _ = waiter.send(result);
                }
            }
            Action::ReportState => {
                node.report.notify_one();
            }
            Action::Alarm { message } => {
                tracing::error!(target = %self.id, "{message}");
            }
        }
    }

    /// Does something that takes time and hands the resulting event back.
    fn run<F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = Event> + Send + 'static,
    {
        // Not awaited: the work reports through its event.
        let _ = self.spawn(work);
    }

    fn spawn<F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F) -> AbortHandle
    where
        F: Future<Output = Event> + Send + 'static,
    {
        let host = self.clone();
        let work = work(self.clone());
        tokio::spawn(async move { host.drive(work.await) }).abort_handle()
    }

    fn sent(&self, op: OpId, attempt: u32) {
        let mut core = self.core.lock();
        if let Some(sends) = core.sends.get_mut(&op) {
            sends.retain(|&(other, _)| other != attempt);
            if sends.is_empty() {
                core.sends.remove(&op);
            }
        }
    }

    /// A change that keeps a part of a damaged page, or reads one, waits for its repair.
    async fn prepare(&self, key: ChunkKey, prepare: Prepare) -> Result<ChunkMeta> {
        let again = prepare.clone();
        match self.engine.prepare(self.id, key, prepare).await {
            Err(error) if is_damage(self, &error) => {
                let committed = ReadVersion::Committed;
                let node = self.node()?;
                node.repair(self, key, committed, Cause::Write).await?;
                self.engine.prepare(self.id, key, again).await
            }
            result => result,
        }
    }

    /// The whole content of a version, verified: a successor must not be sent damaged bytes.
    async fn content(&self, key: ChunkKey, version: ReadVersion) -> Result<Content> {
        match self.verified(key, version).await {
            Err(error) if is_damage(self, &error) => {
                let node = self.node()?;
                node.repair(self, key, version, Cause::Resync).await?;
                self.verified(key, version).await
            }
            result => result,
        }
    }

    async fn verified(&self, key: ChunkKey, version: ReadVersion) -> Result<Content> {
        let read = self
            .engine
            .read(self.id, key, version, 0, MAX_CHUNK_SIZE)
            .await?;
        verify_fragments(0, &read.data, read.page_size, &read.checksums).map_err(|bad| {
            let what = format!("target {} chunk {key}: bytes {bad:?} are damaged", self.id);
            Error::new(ErrorCode::ChecksumMismatch, what)
        })?;
        Ok(Content {
            data: read.data,
            checksums: read.checksums,
        })
    }

    /// This target begins (or begins again) a chain: what is pending here becomes committed, because an
    /// acknowledged write may be known to this target alone.
    async fn recover(&self, chain: ChainVersion) -> Result<()> {
        let mut after = None;
        loop {
            let page = self.engine.list(self.id, after, LIST_PAGE).await?;
            let Some(&(last, _)) = page.last() else {
                return Ok(());
            };
            for (key, meta) in page {
                if let Some(pending) = meta.pending {
                    self.engine
                        .commit(self.id, key, pending.version, chain)
                        .await?;
                }
            }
            after = Some(last);
        }
    }

    /// Tells the successor something and waits for its answer.
    async fn send(
        &self,
        to: TargetId,
        chain_version: ChainVersion,
        message: Message,
    ) -> Result<Outcome> {
        let node = self.node()?;
        let map = node.map();
        let gone = || {
            Error::new(
                ErrorCode::StaleChainVersion,
                format!("target {to} has gone"),
            )
        };
        let target = map.targets.get(&to).ok_or_else(gone)?;
        let addr = &map.node_of(target).ok_or_else(gone)?.data_addr;
        let chain = map.chain(target.chain)?;
        let position = map
            .writable(chain)
            .position(|t| t.id == self.id)
            .unwrap_or(0);
        let reference = pb::ChainRef::of(chain.id, chain_version);
        let (body, payload) = data::forward_message(&message, reference, self.id);
        let deadline = Instant::now() + FORWARD_TIMEOUT;
        let call = Call {
            payload: payload.into_iter().collect(),
            hop: position as u8 + 1,
            ..Call::new(Opcode::Forward, &body, deadline)
        };
        let removed = match &message {
            Message::Forward(forward) if matches!(forward.update.kind, UpdateKind::Remove) => {
                Some(forward.version)
            }
            _ => None,
        };
        if body.resync {
            let bytes = call.payload.iter().map(|piece| piece.len() as u64).sum();
            self.progress.sending(bytes);
        }
        let reply = node.peers.peer(addr).call(call).await;
        let reply: pb::ForwardReply = reply?.decode()?;
        Ok(Outcome {
            version: removed.unwrap_or(ChunkVersion(reply.version)),
            len: reply.len,
            checksum: reply.checksum,
            chain: ChainVersion(reply.committed_chain),
        })
    }
}

fn stopping() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "this storage server is stopping; ask another replica",
    )
}
