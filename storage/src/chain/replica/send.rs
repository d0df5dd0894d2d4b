//! What goes to the successor, and what its answer means.

use std::sync::Arc;

use emberfs_proto::ids::ChainVersion;
use emberfs_proto::{ErrorCode, Result, RetryClass};

use super::{Op, Phase, Received, Replica, Source, pass_over};
use crate::chain::types::{
    Action, Content, Forward, Message, OpId, Outcome, Successor, Update, UpdateKind,
};
use crate::engine::{ChunkMeta, ReadVersion};

impl Replica {
    /// The change is durable here: on to the successor of the chain as it is now, or commit.
    pub(super) fn dispatch(&mut self, id: OpId, lease: bool, out: &mut Vec<Action>) {
        let Some(view) = &self.view else { return };
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        if let Some(error) = op.undone.clone() {
            return self.take_back(id, error, lease, out);
        }
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
        let forward = Forward {
            replace: whole_here || (partial && next.syncing),
            ..op.forward()
        };
        let chain_version = view.version;
        if op.send_whole || !self.send_confirm(id, next, chain_version, out) {
            self.send(id, next, chain_version, forward, out);
        }
    }

    fn send(
        &mut self,
        id: OpId,
        next: Successor,
        chain_version: ChainVersion,
        forward: Forward,
        out: &mut Vec<Action>,
    ) {
        if let Some(sent) = self.ops.get_mut(&id).and_then(|op| op.early.as_mut()) {
            sent.confirming = false;
        }
        self.tell(id, next, chain_version, Message::Forward(forward), out);
    }

    /// Tells the successor something and waits for its answer.
    pub(super) fn tell(
        &mut self,
        id: OpId,
        next: Successor,
        chain_version: ChainVersion,
        message: Message,
        out: &mut Vec<Action>,
    ) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        op.phase = Phase::Forwarding;
        op.attempt += 1;
        out.push(Action::Send {
            op: id,
            attempt: op.attempt,
            to: next.target,
            chain_version,
            message,
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
    pub(super) fn send_copy(
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
                    early: false,
                    sequence: 0,
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
        let received = op.received.as_ref();
        let forward = Forward {
            replace: received.is_some_and(|r| r.replace),
            resync: true,
            committed_chain: received.map_or(ChainVersion(0), |r| r.committed_chain),
            recent: received.map_or_else(Arc::default, |r| Arc::clone(&r.recent)),
            ..op.forward()
        };
        let chain_version = op.chain_version;
        self.send(id, next, chain_version, forward, out);
    }

    pub(super) fn content(
        &mut self,
        id: OpId,
        result: Result<Content>,
        lease: bool,
        out: &mut Vec<Action>,
    ) {
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
            return self.dispatch(id, lease, out);
        };
        let forward = Forward {
            update: Update {
                kind,
                ..op.update.clone()
            },
            replace: true,
            ..op.forward()
        };
        self.send(id, next, version, forward, out);
    }

    pub(super) fn forwarded(
        &mut self,
        id: OpId,
        result: Result<Outcome>,
        lease: bool,
        out: &mut Vec<Action>,
    ) {
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
        if let Some(error) = op.undone.clone() {
            return match result {
                Ok(_) => self.finish(id, Err(error), lease, out),
                Err(_) => self.retry_later(id, out),
            };
        }
        if let Some(sent) = op.early.as_mut().filter(|sent| sent.confirming)
            && let Err(error) = &result
        {
            sent.confirming = false;
            sent.refused = true;
            if error.code == ErrorCode::MissingVersion {
                return self.dispatch(id, lease, out);
            }
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
                self.give_up(id, error, out);
            }
            Err(error) if mutated!(self, ReuseVersionAfterTimeout) => {
                op.early = None;
                self.give_up(id, error, out);
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
}

impl Op {
    /// The change as it goes on from here in the usual way.
    pub(super) fn forward(&self) -> Forward {
        Forward {
            update: self.update.clone(),
            version: self.version,
            replace: false,
            resync: false,
            committed_chain: ChainVersion(0),
            recent: Arc::clone(&self.recent),
            early: false,
            sequence: self.early.map_or(0, |sent| sent.sequence),
        }
    }
}
