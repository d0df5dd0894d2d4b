//! One write, step by step: load → prepare → (hold) → forward → commit.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::cluster::{LocalState, PublicState};
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion};
use emberfs_proto::{Error, ErrorCode, Result};

use super::decide::{self, Decision};
use super::{Op, Phase, Replica, Source, answer};
use crate::chain::types::{Action, Event, OpId, Outcome, Update, UpdateKind};
use crate::engine::{ChunkMeta, PendingMeta, Prepare};

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
                } else if let Some(sent) = self.ops.get_mut(&op).and_then(|o| o.early.as_mut()) {
                    sent.refused |= sent.attempt == attempt && result.is_err();
                }
            }
            Event::RetryDue { op: RECOVERY, .. } => self.recover_if_due(out),
            Event::RetryDue { op, attempt } => {
                let waits = |o: &Op| o.phase == Phase::RetryWait && o.attempt == attempt;
                if self.ops.get(&op).is_some_and(waits) {
                    self.dispatch(op, lease, out);
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
                if let Err(error) = result {
                    self.fail(out);
                    if let Some(op) = self.ops.get_mut(&op) {
                        op.undone = Some(error);
                    }
                }
                let unknown = Error::new(ErrorCode::Internal, "write undone without a reason");
                self.take_back(op, unknown, lease, out);
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
        if let Some(error) = op.undone.clone() {
            return self.finish(id, Err(error), lease, out);
        }
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
                self.durable(id, lease, out);
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
                let key = op.update.key;
                if !whole {
                    self.send_early(id, out);
                }
                out.push(Action::Prepare {
                    op: id,
                    key,
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
                return self.take_back(id, error, lease, out);
            }
            // Nothing was stored here: once nothing is stored further down, the requester may hear of it.
            Err(error) => {
                if error.code == ErrorCode::NoSpace && self.is_syncing() {
                    // A copy that has no room must not hold the chain up.
                    self.local = LocalState::Offline;
                    out.push(Action::ReportState);
                }
                return self.take_back(id, error, lease, out);
            }
        };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.adopt_pending(&pending);
        if mutated!(self, AcknowledgeBeforeTail) && op.source == Source::Client {
            answer(&op.waiters, Ok(op.outcome()), out);
        }
        self.durable(id, lease, out);
    }

    /// The change is pending here, durably.
    fn durable(&mut self, id: OpId, lease: bool, out: &mut Vec<Action>) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        if let Some(error) = op.undone.clone() {
            return self.give_up(id, error, out);
        }
        if op.came_early().is_none() || op.confirmed || mutated!(self, CommitUnconfirmed) {
            return self.dispatch(id, lease, out);
        }
        op.phase = Phase::Held;
        answer(&std::mem::take(&mut op.waiters), Ok(op.outcome()), out);
        self.settle_held(id, lease, out);
    }

    fn is_syncing(&self) -> bool {
        self.view
            .as_ref()
            .is_some_and(|view| view.state == PublicState::Syncing)
    }

    pub(super) fn retry_later(&mut self, id: OpId, out: &mut Vec<Action>) {
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
    pub(in crate::chain) fn nothing(chain: ChainVersion) -> Self {
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
