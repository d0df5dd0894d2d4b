//! What goes into a [`Replica`](super::Replica) and what comes out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use emberfs_proto::Result;
use emberfs_proto::cluster::{ClusterMap, PublicState};
use emberfs_proto::ids::{ChainId, ChainVersion, ChunkKey, ChunkVersion, TargetId, WriteTag};

use crate::engine::{ChunkMeta, Mark, Prepare, ReadVersion};

/// A chain as one of its targets sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The chain.
    pub chain: ChainId,
    /// Its version.
    pub version: ChainVersion,
    /// This target's public state.
    pub state: PublicState,
    /// Client writes enter here.
    pub is_head: bool,
    /// The last SERVING target: its word decides what is committed.
    pub tail: Option<TargetId>,
    /// Who receives this target's writes.
    pub successor: Option<Successor>,
}

/// The next target in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Which target.
    pub target: TargetId,
    /// It is being synced: it receives a chunk whole first, and then what changes.
    pub syncing: bool,
}

impl View {
    /// The view of `target` in `map`; `None` if the map does not know it.
    pub fn of(map: &ClusterMap, target: TargetId) -> Option<Self> {
        let me = map.targets.get(&target)?;
        let chain = map.chains.get(&me.chain)?;
        let successor = map.successor(chain, target).map(|next| Successor {
            target: next.id,
            syncing: next.state == PublicState::Syncing,
        });
        Some(Self {
            chain: chain.id,
            version: chain.version,
            state: me.state,
            is_head: map.head(chain).is_some_and(|head| head.id == target),
            tail: map.tail(chain).map(|tail| tail.id),
            successor,
        })
    }

    /// The same to a target that is about to leave its chain: to itself it has left already.
    #[must_use]
    pub fn left(self) -> Self {
        Self {
            state: PublicState::Offline,
            is_head: false,
            tail: None,
            successor: None,
            ..self
        }
    }
}

/// A request that waits for an answer; chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One piece of work inside a replica; chosen by the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// A change of one chunk.
#[derive(Clone, Debug)]
pub struct Update {
    /// Which chunk.
    pub key: ChunkKey,
    /// Names the write for exactly-once; `None` only where nothing needs it. All chunks of a trim share one.
    pub tag: Option<WriteTag>,
    /// The change.
    pub kind: UpdateKind,
    /// Most bytes of the chunk.
    pub chunk_size: u32,
    /// Bytes per checksum page.
    pub page_size: u32,
}

/// The change itself.
#[derive(Clone, Debug)]
pub enum UpdateKind {
    /// Bytes at an offset.
    Write {
        /// First byte within the chunk.
        offset: u32,
        /// The bytes.
        data: Bytes,
        /// One per fragment, verified on receipt.
        checksums: Vec<u32>,
        /// Expected final length of the chunk; 0: unknown.
        size_hint: u32,
    },
    /// Cuts the chunk to a length; a shorter or missing chunk stays as it is.
    Truncate {
        /// The new length.
        len: u32,
        /// Of a chunk that is longer than this nothing is cut, and the head refuses; `u32::MAX`: however
        /// long it is. So nothing is lost that was written behind a range to be cut.
        within: u32,
    },
    /// Removes the chunk and its record.
    Remove,
}

/// A change on its way along the chain.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The change; with `replace` a write of the whole content at offset 0.
    pub update: Update,
    /// The version it makes.
    pub version: ChunkVersion,
    /// The write is the chunk's whole content, whatever the receiver has.
    pub replace: bool,
    /// Copied by resync: it was committed long ago.
    pub resync: bool,
    /// With `resync`: the chain version under which it was committed.
    pub committed_chain: ChainVersion,
    /// With `replace`: the writes before this one that the content holds.
    pub recent: Arc<[Mark]>,
    /// It is not durable yet where it comes from: to be stored and held until [`Message::Confirm`],
    /// [`Message::Withdraw`] or the same change in the usual way names the same number.
    pub early: bool,
    /// The sender's number of this change, if it sends it early or did so before; rises. 0: it did not.
    pub sequence: u64,
}

/// What was sent early: the number that the sender gave it under the chain version that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Of this chunk.
    pub key: ChunkKey,
    /// See [`Forward::sequence`].
    pub sequence: u64,
}

/// What one target tells its successor.
#[derive(Clone, Debug)]
pub enum Message {
    /// A change.
    Forward(Forward),
    /// What was sent early is durable on every target before: pass that on, and commit.
    Confirm(Sent),
    /// What was sent early has failed: forget it, and say so when it is nowhere below any more.
    Withdraw(Sent),
}

/// A finished change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The committed version.
    pub version: ChunkVersion,
    /// Length of the chunk, bytes.
    pub len: u32,
    /// Checksum of the chunk.
    pub checksum: u32,
    /// Chain version under which the tail committed it.
    pub chain: ChainVersion,
}

/// A chunk's whole content.
#[derive(Clone, Debug)]
pub struct Content {
    /// The bytes.
    pub data: Bytes,
    /// One per page.
    pub checksums: Vec<u32>,
}

/// What happens to a replica.
#[derive(Debug)]
pub enum Event {
    /// A client's write (only the head takes it).
    Write {
        /// Who waits.
        request: RequestId,
        /// The chain version that the client believes in.
        chain_version: ChainVersion,
        /// The change.
        update: Update,
        /// The trim that this is part of, if it is.
        trim: Option<WriteTag>,
    },
    /// The predecessor passes a change on.
    Forward {
        /// Who waits.
        request: RequestId,
        /// The chain version that the predecessor believes in.
        chain_version: ChainVersion,
        /// The change.
        forward: Forward,
    },
    /// [`Message::Confirm`] of the predecessor.
    Confirm {
        /// Who waits.
        request: RequestId,
        /// The chain version that the predecessor believes in.
        chain_version: ChainVersion,
        /// What is confirmed.
        sent: Sent,
    },
    /// [`Message::Withdraw`] of the predecessor.
    Withdraw {
        /// Who waits.
        request: RequestId,
        /// The chain version that the predecessor believes in.
        chain_version: ChainVersion,
        /// What is withdrawn.
        sent: Sent,
    },
    /// Resync: bring the SYNCING successor's copy of this chunk up to ours.
    Resync {
        /// Who waits.
        request: RequestId,
        /// The chain version of the resync pass.
        chain_version: ChainVersion,
        /// Which chunk.
        key: ChunkKey,
    },
    /// Every change of this trim has been made: a late duplicate must do nothing.
    TrimDone {
        /// Which trim.
        tag: WriteTag,
    },
    /// Answer to [`Action::Load`].
    Loaded {
        /// For which work.
        op: OpId,
        /// What the engine holds.
        result: Result<Option<ChunkMeta>>,
    },
    /// Answer to [`Action::Prepare`].
    Prepared {
        /// For which work.
        op: OpId,
        /// The chunk with its new pending version.
        result: Result<ChunkMeta>,
    },
    /// Answer to [`Action::ReadContent`].
    Content {
        /// For which work.
        op: OpId,
        /// The content.
        result: Result<Content>,
    },
    /// Answer to [`Action::Send`].
    Forwarded {
        /// For which work.
        op: OpId,
        /// Which sending.
        attempt: u32,
        /// What the successor said.
        result: Result<Outcome>,
    },
    /// [`Action::RetryAfter`] has passed.
    RetryDue {
        /// For which work.
        op: OpId,
        /// Which sending failed.
        attempt: u32,
    },
    /// Answer to [`Action::Commit`] and [`Action::Drop`].
    Committed {
        /// For which work.
        op: OpId,
        /// Whether it worked.
        result: Result<()>,
    },
    /// Answer to [`Action::Abort`].
    Aborted {
        /// For which work.
        op: OpId,
        /// Whether it worked.
        result: Result<()>,
    },
    /// A newer cluster map.
    Adopt {
        /// The chain in it.
        view: View,
    },
    /// Answer to [`Action::Recover`].
    Recovered {
        /// The chain version of the action.
        chain_version: ChainVersion,
        /// Whether it worked.
        result: Result<()>,
    },
    /// The driver is about to tell the SYNCING successor that it holds everything: from now on it may
    /// become SERVING, and decide what is committed, before this target hears of it.
    HandOver {
        /// The chain version of the resync pass.
        chain_version: ChainVersion,
    },
    /// The engine's disk failed. The manager is told that this target is OFFLINE and may go on without
    /// it at any moment, so it serves nothing more.
    Failed,
    /// The predecessor says that this target now holds everything.
    SyncDone {
        /// Who waits.
        request: RequestId,
        /// The chain version of the resync pass.
        chain_version: ChainVersion,
    },
}

/// What a replica wants done.
#[derive(Debug)]
pub enum Action {
    /// Look a chunk up in the engine.
    Load {
        /// For which work.
        op: OpId,
        /// Which chunk.
        key: ChunkKey,
    },
    /// Make a change durable as the pending version.
    Prepare {
        /// For which work.
        op: OpId,
        /// Which chunk.
        key: ChunkKey,
        /// The change.
        prepare: Prepare,
    },
    /// Read a chunk's whole content.
    ReadContent {
        /// For which work.
        op: OpId,
        /// Which chunk.
        key: ChunkKey,
        /// Which version.
        version: ReadVersion,
    },
    /// Tell the successor something.
    Send {
        /// For which work.
        op: OpId,
        /// Which sending.
        attempt: u32,
        /// To whom.
        to: TargetId,
        /// The chain version to name.
        chain_version: ChainVersion,
        /// What.
        message: Message,
    },
    /// Stop waiting for the answers of all sendings.
    CancelSend {
        /// For which work.
        op: OpId,
    },
    /// Come back with [`Event::RetryDue`].
    RetryAfter {
        /// For which work.
        op: OpId,
        /// Which sending failed.
        attempt: u32,
        /// How long to wait.
        delay: Duration,
    },
    /// Make the pending version the committed one.
    Commit {
        /// For which work.
        op: OpId,
        /// Which chunk.
        key: ChunkKey,
        /// The pending version.
        version: ChunkVersion,
        /// The chain version to stamp it with.
        chain: ChainVersion,
    },
    /// Forget the pending version.
    Abort {
        /// For which work.
        op: OpId,
        /// Which chunk.
        key: ChunkKey,
        /// The pending version.
        version: ChunkVersion,
    },
    /// Drop the chunk with everything that is pending on it; answered by [`Event::Committed`].
    Drop {
        /// For which work.
        op: OpId,
        /// Which chunk.
        key: ChunkKey,
    },
    /// Commit every pending version on the target, then come back with [`Event::Recovered`].
    Recover {
        /// Repeat this in the answer.
        chain_version: ChainVersion,
    },
    /// Bring the SYNCING successor up to date; a pass of an older chain version is over.
    StartResync {
        /// The chain version of the pass.
        chain_version: ChainVersion,
        /// The successor.
        to: TargetId,
        /// Chunks with work in progress now: they are sent at the end whatever the comparison says, because
        /// that work began before the successor was there to hear of it, unless it has acknowledged them whole.
        busy: Vec<ChunkKey>,
    },
    /// The local state changed: tell the manager now.
    ReportState,
    /// Answer a request.
    Reply {
        /// Who waits.
        request: RequestId,
        /// The answer.
        result: Result<Outcome>,
    },
    /// Two replicas disagree about a chunk: tell an operator.
    Alarm {
        /// What was seen.
        message: String,
    },
}
