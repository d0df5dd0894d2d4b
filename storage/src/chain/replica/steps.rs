//! One write, step by step: load → prepare → forward → commit.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion};
use emberfs_proto::{Error, ErrorCode, Result, RetryClass};

use super::decide::{self, Decision};
use super::{Op, Phase, Received, Replica, Source, pass_over};
use crate::chain::types::{Action, Content, Event, Forward, OpId, Outcome, Update, UpdateKind};
use crate::engine::{ChunkMeta, PendingMeta, Prepare, ReadVersion};

/// First wait before a failed forward is sent again; doubles up to [`MAX_RETRY`]. A new chain version does not wait.
const FIRST_RETRY: Duration = Duration::from_millis(2);
/// Stands for recovery where a timer names its work; pieces of work count from 1.
pub(super) const RECOVERY: OpId = OpId(0);
/// Longest wait between two sendings, and before recovery is tried again.
pub(super) const MAX_RETRY: Duration = Duration::from_millis(100);

impl Replica {
    /// The engine, the network or a timer answered.
    pub(super) fn step(&mut self, event: Event, lease: bool, out: &mut Vec<Action>) {
        match event {
            Event::Loaded { op, result } if self.still_wanted(op, lease, out) => {
                self.loaded(op, result, lease, out);
            }
            Event::Prepared { op, result } if self.still_wanted(op, lease, out) => {
                self.prepared(op, result, lease, out);
            }
            Event::Content { op, result } if self.still_wanted(op, lease, out) => {
                self.content(op, result, lease, out);
            }
            Event::Forwarded {
                op,
                attempt,
                result,
            } => {
                let waits = |o: &Op| o.phase == Phase::Forwarding && o.attempt == attempt;
                if self.ops.get(&op).is_some_and(waits) {
                    self.forwarded(op, result, lease, out);
                }
            }
            Event::RetryDue { op: RECOVERY, .. } => self.recover_if_due(out),
            Event::RetryDue { op, attempt } => {
                let waits = |o: &Op| o.phase == Phase::RetryWait && o.attempt == attempt;
                if self.ops.get(&op).is_some_and(waits) {
                    self.dispatch(op, out);
                }
            }
            Event::Committed { op, result } if self.still_wanted(op, lease, out) => {
                let Some(done) = self.ops.get(&op) else {
                    return;
                };
                let outcome = done.outcome();
                if result.is_err() {
                    // The successors have committed it, and here nothing tells a reader so any more.
                    self.fail(out);
                }
                self.finish(op, result.map(|()| outcome), lease, out);
            }
            Event::Aborted { op, result } if self.still_wanted(op, lease, out) => {
                let Some(done) = self.ops.get_mut(&op) else {
                    return;
                };
                let reason = done.abort_reason.take();
                if result.is_err() {
                    self.fail(out);
                }
                let error = result.err().or(reason).unwrap_or_else(|| {
                    Error::new(ErrorCode::Internal, "write undone without a reason")
                });
                self.finish(op, Err(error), lease, out);
            }
            _ => {}
        }
    }

    /// Whether the engine's answer is for live work; dead work ends here.
    fn still_wanted(&mut self, id: OpId, lease: bool, out: &mut Vec<Action>) -> bool {
        match self.ops.get(&id) {
            None => false,
            Some(op) if op.dead => {
                let key = op.update.key;
                self.ops.remove(&id);
                self.release(key, id, lease, out);
                self.recover_if_due(out);
                false
            }
            Some(_) => true,
        }
    }

    fn loaded(
        &mut self,
        id: OpId,
        result: Result<Option<ChunkMeta>>,
        lease: bool,
        out: &mut Vec<Action>,
    ) {
        let meta = match result {
            Ok(meta) => meta,
            Err(error) => return self.finish(id, Err(error), lease, out),
        };
        let Some(op) = self.ops.get(&id) else { return };
        let syncing = self.is_syncing();
        let decision = match (op.source, &op.received) {
            (Source::Resync, _) => return self.send_copy(id, meta.as_ref(), lease, out),
            (Source::Predecessor, Some(received)) if syncing => {
                decide::syncing(op, received, meta.as_ref())
            }
            (Source::Predecessor, Some(received)) => decide::forwarded(op, received, meta.as_ref()),
            _ if mutated!(self, ForgetDedupAtHeadChange) => {
                let forgotten = meta.clone().map(|meta| ChunkMeta {
                    recent: Arc::default(),
                    ..meta
                });
                decide::head(op, forgotten.as_ref())
            }
            _ => decide::head(op, meta.as_ref()),
        };
        match decision {
            Decision::Answer(answer) => self.finish(id, answer, lease, out),
            Decision::Resume(pending) => {
                let Some(op) = self.ops.get_mut(&id) else {
                    return;
                };
                op.adopt_pending(&pending);
                self.dispatch(id, out);
            }
            Decision::Drop => {
                let Some(op) = self.ops.get_mut(&id) else {
                    return;
                };
                op.phase = Phase::Committing;
                out.push(Action::Drop {
                    op: id,
                    key: op.update.key,
                });
            }
            Decision::Prepare { version, whole } => {
                let chain_version = self.view.as_ref().map_or(ChainVersion(0), |v| v.version);
                let Some(op) = self.ops.get_mut(&id) else {
                    return;
                };
                op.phase = Phase::Preparing;
                op.version = version;
                let prepare = Prepare {
                    version,
                    chain_version,
                    tag: op.update.tag.unwrap_or_default(),
                    kind: decide::engine_kind(op, whole),
                    page_size: op.update.page_size,
                    chunk_size: op.update.chunk_size,
                };
                out.push(Action::Prepare {
                    op: id,
                    key: op.update.key,
                    prepare,
                });
            }
        }
    }

    fn prepared(
        &mut self,
        id: OpId,
        result: Result<ChunkMeta>,
        lease: bool,
        out: &mut Vec<Action>,
    ) {
        let pending = match result {
            Ok(ChunkMeta {
                pending: Some(pending),
                ..
            }) => pending,
            Ok(_) => {
                let error = Error::new(ErrorCode::Internal, "prepared, but nothing is pending");
                return self.finish(id, Err(error), lease, out);
            }
            // Nothing was stored, here or further down: the requester may hear of it.
            Err(error) => {
                if error.code == ErrorCode::NoSpace && self.is_syncing() {
                    // A copy that has no room must not hold the chain up.
                    self.local = LocalState::Offline;
                    out.push(Action::ReportState);
                }
                return self.finish(id, Err(error), lease, out);
            }
        };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.adopt_pending(&pending);
        if mutated!(self, AcknowledgeBeforeTail) && op.source == Source::Client {
            let result = Ok(op.outcome());
            let request = op.request;
            out.push(Action::Reply { request, result });
        }
        self.dispatch(id, out);
    }

    /// The change is durable here: on to the successor of the chain as it is now, or commit.
    pub(super) fn dispatch(&mut self, id: OpId, out: &mut Vec<Action>) {
        let Some(view) = &self.view else { return };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let key = op.update.key;
        let Some(next) = view.successor else {
            op.phase = Phase::Committing;
            let chain = op
                .received
                .as_ref()
                .filter(|r| r.resync)
                .map_or(view.version, |r| r.committed_chain);
            out.push(Action::Commit {
                op: id,
                key,
                version: op.version,
                chain,
            });
            return;
        };
        let whole_here = op.received.as_ref().is_some_and(|r| r.replace);
        let removes = matches!(op.update.kind, UpdateKind::Remove);
        let truncates = matches!(op.update.kind, UpdateKind::Truncate { .. });
        if next.syncing && truncates && mutated!(self, DropTruncateDuringResync) {
            return self.commit_now(id, out);
        }
        let partial = mutated!(self, ForwardPartialToSyncing);
        let holds_less = next.syncing && !self.mirrored.contains(&key);
        if (holds_less || op.send_whole) && !whole_here && !removes && !partial {
            op.phase = Phase::ReadingContent;
            out.push(Action::ReadContent {
                op: id,
                key,
                version: ReadVersion::Exactly(op.version),
            });
            return;
        }
        op.phase = Phase::Forwarding;
        op.attempt += 1;
        let forward = Forward {
            update: op.update.clone(),
            version: op.version,
            replace: whole_here || (partial && next.syncing),
            resync: false,
            committed_chain: ChainVersion(0),
            recent: Arc::clone(&op.recent),
        };
        let (attempt, to, chain_version) = (op.attempt, next.target, view.version);
        out.push(Action::Send {
            op: id,
            attempt,
            to,
            chain_version,
            forward,
        });
    }

    /// Commits whatever the successor says: what two of the mutants do.
    pub(super) fn commit_now(&mut self, id: OpId, out: &mut Vec<Action>) {
        let chain = self.view.as_ref().map_or(ChainVersion(0), |v| v.version);
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.phase = Phase::Committing;
        let (key, version) = (op.update.key, op.version);
        out.push(Action::Commit {
            op: id,
            key,
            version,
            chain,
        });
    }

    /// Resync: the chunk is held still, so its committed content is the truth.
    fn send_copy(
        &mut self,
        id: OpId,
        meta: Option<&ChunkMeta>,
        lease: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        match meta.filter(|meta| meta.committed.0 > 0) {
            None => {
                op.update.kind = UpdateKind::Remove;
                self.send_resync(id, lease, out);
            }
            Some(meta) => {
                op.version = meta.committed;
                op.checksum = meta.checksum;
                op.len = meta.committed_len;
                op.update.tag = Some(meta.tag);
                op.update.page_size = meta.page_size;
                op.update.chunk_size = meta.chunk_size;
                op.received = Some(Received {
                    version: meta.committed,
                    replace: true,
                    resync: true,
                    committed_chain: meta.committed_chain,
                    recent: Arc::clone(&meta.recent),
                });
                op.phase = Phase::ReadingContent;
                let key = op.update.key;
                out.push(Action::ReadContent {
                    op: id,
                    key,
                    version: ReadVersion::Committed,
                });
            }
        }
    }

    fn send_resync(&mut self, id: OpId, lease: bool, out: &mut Vec<Action>) {
        let Some(view) = &self.view else { return };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let Some(next) = view.successor.filter(|_| view.version == op.chain_version) else {
            return self.finish(id, Err(pass_over()), lease, out);
        };
        op.phase = Phase::Forwarding;
        op.attempt += 1;
        let received = op.received.as_ref();
        let forward = Forward {
            update: op.update.clone(),
            version: op.version,
            replace: received.is_some_and(|r| r.replace),
            resync: true,
            committed_chain: received.map_or(ChainVersion(0), |r| r.committed_chain),
            recent: received.map_or_else(Arc::default, |r| Arc::clone(&r.recent)),
        };
        let (attempt, to, chain_version) = (op.attempt, next.target, op.chain_version);
        out.push(Action::Send {
            op: id,
            attempt,
            to,
            chain_version,
            forward,
        });
    }

    fn content(&mut self, id: OpId, result: Result<Content>, lease: bool, out: &mut Vec<Action>) {
        let Some(view) = &self.view else { return };
        let (version, successor) = (view.version, view.successor);
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let content = match result {
            Ok(content) => content,
            Err(error) if op.source == Source::Resync => {
                return self.finish(id, Err(error), lease, out);
            }
            // The write is pending here and must be finished: read again until the disk answers
            // or this target leaves the chain because of it.
            Err(error) => {
                let message = format!(
                    "chunk {}: cannot read what was just written: {error}",
                    op.update.key
                );
                out.push(Action::Alarm { message });
                return self.retry_later(id, out);
            }
        };
        let kind = UpdateKind::Write {
            offset: 0,
            data: content.data,
            checksums: content.checksums,
            size_hint: 0,
        };
        if op.source == Source::Resync {
            op.update.kind = kind;
            return self.send_resync(id, lease, out);
        }
        let Some(next) = successor else {
            return self.dispatch(id, out);
        };
        op.phase = Phase::Forwarding;
        op.attempt += 1;
        let forward = Forward {
            update: Update {
                kind,
                ..op.update.clone()
            },
            version: op.version,
            replace: true,
            resync: false,
            committed_chain: ChainVersion(0),
            recent: Arc::clone(&op.recent),
        };
        let attempt = op.attempt;
        out.push(Action::Send {
            op: id,
            attempt,
            to: next.target,
            chain_version: version,
            forward,
        });
    }

    fn forwarded(&mut self, id: OpId, result: Result<Outcome>, lease: bool, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let key = op.update.key;
        let removes = matches!(op.update.kind, UpdateKind::Remove);
        if op.source == Source::Resync {
            let holds = result
                .as_ref()
                .is_ok_and(|theirs| op.is_mirrored_by(theirs));
            let holds = holds || mutated!(self, TrustFailedCopies);
            self.mirror(key, holds);
            return self.finish(id, result, lease, out);
        }
        match result {
            Ok(theirs) => {
                if theirs.version == op.version && theirs.checksum != op.checksum && !removes {
                    let message = format!(
                        "chunk {key} {}: this replica has checksum {:08x}, its successor {:08x}; run `emberfs fsck`",
                        op.version, op.checksum, theirs.checksum
                    );
                    out.push(Action::Alarm { message });
                }
                op.phase = Phase::Committing;
                out.push(Action::Commit {
                    op: id,
                    key,
                    version: op.version,
                    chain: theirs.chain,
                });
                let holds = op.is_mirrored_by(&theirs);
                self.mirror(key, holds);
            }
            // For certain only if no earlier sending can arrive later and be stored then.
            Err(error) if error.code == ErrorCode::NoSpace && !op.exposed && !op.unsure => {
                op.phase = Phase::Aborting;
                op.abort_reason = Some(error);
                out.push(Action::Abort {
                    op: id,
                    key,
                    version: op.version,
                });
            }
            Err(error) if mutated!(self, ReuseVersionAfterTimeout) => {
                op.phase = Phase::Aborting;
                op.abort_reason = Some(error);
                let version = op.version;
                out.push(Action::Abort {
                    op: id,
                    key,
                    version,
                });
            }
            Err(error) => {
                if matches!(
                    error.code,
                    ErrorCode::MissingVersion | ErrorCode::ReplicaMismatch
                ) {
                    op.send_whole = true;
                }
                op.unsure |= error.retry() == RetryClass::Reconnect
                    || error.code == ErrorCode::DeadlineExceeded;
                self.retry_later(id, out);
            }
        }
    }

    fn is_syncing(&self) -> bool {
        self.view
            .as_ref()
            .is_some_and(|view| view.state == PublicState::Syncing)
    }

    fn retry_later(&mut self, id: OpId, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.phase = Phase::RetryWait;
        let doublings = op.attempt.min(10);
        let delay = FIRST_RETRY.saturating_mul(1 << doublings).min(MAX_RETRY);
        out.push(Action::RetryAfter {
            op: id,
            attempt: op.attempt,
            delay,
        });
    }
}

impl Op {
    fn adopt_pending(&mut self, pending: &PendingMeta) {
        self.version = pending.version;
        self.len = pending.len;
        self.checksum = pending.checksum;
        self.recent = Arc::clone(&pending.recent);
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            version: self.version,
            len: self.len,
            checksum: self.checksum,
            chain: self.chain_version,
        }
    }
}

impl Outcome {
    /// Nothing had to be done.
    pub(super) fn nothing(chain: ChainVersion) -> Self {
        Self {
            version: ChunkVersion(0),
            len: 0,
            checksum: 0,
            chain,
        }
    }

    pub(super) fn of(meta: &ChunkMeta) -> Self {
        Self {
            version: meta.committed,
            len: meta.committed_len,
            checksum: meta.checksum,
            chain: meta.committed_chain,
        }
    }
}

impl Update {
    /// Placeholder of a copy whose content is not read yet.
    pub(super) fn resync(key: ChunkKey) -> Self {
        Self {
            key,
            tag: None,
            kind: UpdateKind::Remove,
            chunk_size: 0,
            page_size: 0,
        }
    }
}
