//! One piece of work inside a replica.

use std::sync::Arc;

use emberfs_proto::Error;
use emberfs_proto::ids::{ChainVersion, ChunkVersion, WriteTag};

use crate::chain::types::{RequestId, Update};
use crate::engine::Mark;

/// Who started a piece of work and waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Client,
    Predecessor,
    Resync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for its turn on the chunk.
    Queued,
    /// Waits for the engine's record.
    Loading,
    /// Is being made durable.
    Preparing,
    /// Came early and is durable: waits for the predecessor's word.
    Held,
    /// The whole content is being read for a SYNCING successor.
    ReadingContent,
    /// Waits for the successor's answer.
    Forwarding,
    /// Waits before the next sending.
    RetryWait,
    /// Is being committed.
    Committing,
    /// Is being undone.
    Aborting,
}

impl Phase {
    /// The engine works on it now: its answer must be awaited before the chunk goes on.
    pub(super) fn in_engine(self) -> bool {
        matches!(
            self,
            Self::Loading
                | Self::Preparing
                | Self::ReadingContent
                | Self::Committing
                | Self::Aborting
        )
    }
}

pub(super) struct Op {
    pub(super) source: Source,
    /// Who waits for its outcome; of what came early, until it is held.
    pub(super) waiters: Vec<RequestId>,
    /// Who waits until it is undone.
    pub(super) withdrawals: Vec<RequestId>,
    /// Chain version under which it was asked for.
    pub(super) chain_version: ChainVersion,
    pub(super) update: Update,
    /// From the predecessor: how it came.
    pub(super) received: Option<Received>,
    pub(super) trim: Option<WriteTag>,
    pub(super) phase: Phase,
    /// Assigned by the head, received elsewhere.
    pub(super) version: ChunkVersion,
    /// What the chunk will be once committed.
    pub(super) len: u32,
    pub(super) checksum: u32,
    /// Writes before this one.
    pub(super) recent: Arc<[Mark]>,
    /// Sendings so far.
    pub(super) attempt: u32,
    /// The successor does not hold what this builds on: send the whole content.
    pub(super) send_whole: bool,
    /// The tail that died may have committed it: this target, the tail now, must show it.
    pub(super) exposed: bool,
    /// A sending under this chain version failed without a word on whether it arrived: it may still.
    pub(super) unsure: bool,
    /// Its requester has been answered already; it only waits for the engine.
    pub(super) dead: bool,
    /// Came early, and the predecessor has said that it is durable there.
    pub(super) confirmed: bool,
    /// It was sent on before it was durable here.
    pub(super) early: Option<SentEarly>,
    /// Why it is being undone, here and below.
    pub(super) undone: Option<Error>,
}

/// See [`early`](super::early).
#[derive(Clone, Copy)]
pub(super) struct SentEarly {
    /// Names it among all that this target sent early under one chain version.
    pub(super) sequence: u64,
    /// Which sending it was.
    pub(super) attempt: u32,
    pub(super) chain_version: ChainVersion,
    /// The last sending was to confirm it.
    pub(super) confirming: bool,
    /// The successor refused it or does not hold it any more.
    pub(super) refused: bool,
}

#[derive(Clone)]
pub(super) struct Received {
    pub(super) version: ChunkVersion,
    pub(super) replace: bool,
    pub(super) resync: bool,
    pub(super) committed_chain: ChainVersion,
    pub(super) recent: Arc<[Mark]>,
    /// It came before it was durable at the predecessor.
    pub(super) early: bool,
    /// The predecessor's number of it; 0: none.
    pub(super) sequence: u64,
}

impl Op {
    /// The engine may hold a pending version because of it.
    pub(super) fn may_be_pending(&self) -> bool {
        self.source != Source::Resync && !matches!(self.phase, Phase::Queued | Phase::Loading)
    }

    pub(super) fn new(
        source: Source,
        request: RequestId,
        chain_version: ChainVersion,
        update: Update,
    ) -> Self {
        Self {
            source,
            waiters: vec![request],
            withdrawals: Vec::new(),
            chain_version,
            update,
            received: None,
            trim: None,
            phase: Phase::Queued,
            version: ChunkVersion(0),
            len: 0,
            checksum: 0,
            recent: Arc::default(),
            attempt: 0,
            send_whole: false,
            exposed: false,
            unsure: false,
            dead: false,
            confirmed: false,
            early: None,
            undone: None,
        }
    }
}
