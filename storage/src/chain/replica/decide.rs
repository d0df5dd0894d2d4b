//! What to do with a change once the chunk's record is known. Pure.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use emberfs_proto::ids::{ChunkVersion, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};

use super::{Op, Received};
use crate::chain::types::{Outcome, UpdateKind};
use crate::engine::{ChunkMeta, PendingMeta, PrepareKind};

/// What to do with a change once the chunk's record is known.
pub(super) enum Decision {
    /// Make it durable.
    Prepare { version: ChunkVersion, whole: bool },
    /// It is durable already (sent again after a chain change): go on from there.
    Resume(PendingMeta),
    /// Drop the chunk and whatever is pending on it (only while syncing: nobody reads here).
    Drop,
    /// Nothing to do.
    Answer(Result<Outcome>),
}

/// The head orders: the next version, unless there is nothing to do.
pub(super) fn head(op: &Op, meta: Option<&ChunkMeta>) -> Decision {
    let nothing = || Decision::Answer(Ok(Outcome::nothing(op.chain_version)));
    let Some(meta) = meta else {
        return match op.update.kind {
            UpdateKind::Write { .. } => Decision::Prepare {
                version: ChunkVersion(1),
                whole: false,
            },
            UpdateKind::Truncate { .. } | UpdateKind::Remove => nothing(),
        };
    };
    if let Some(pending) = &meta.pending {
        // A pending version without work in progress is left only by a failed engine.
        let what = format!(
            "chunk {}: version {} was left unfinished",
            op.update.key, pending.version
        );
        return Decision::Answer(Err(Error::new(ErrorCode::Unavailable, what)));
    }
    if let Some(answer) = op.update.tag.and_then(|tag| remembered(tag, meta)) {
        return Decision::Answer(answer);
    }
    if let UpdateKind::Truncate { len, within } = op.update.kind {
        if len >= meta.committed_len {
            return nothing();
        }
        if meta.committed_len > within {
            let what = format!(
                "chunk {} has {} bytes by now, and was to be cut only if it has at most {within}",
                op.update.key, meta.committed_len
            );
            return Decision::Answer(Err(Error::new(ErrorCode::StaleChunkVersion, what)));
        }
    }
    Decision::Prepare {
        version: ChunkVersion(meta.committed.0 + 1),
        whole: false,
    }
}

/// What the chunk's record says of a write: it outlives every process.
fn remembered(tag: WriteTag, meta: &ChunkMeta) -> Option<Result<Outcome>> {
    let last = (meta.committed.0 > 0).then_some((meta.tag, Outcome::of(meta)));
    let earlier = meta.recent.iter().map(|mark| {
        let outcome = Outcome {
            version: mark.version,
            len: mark.len,
            // Of a content that is gone.
            checksum: 0,
            chain: meta.committed_chain,
        };
        (mark.tag, outcome)
    });
    let mut known = last.into_iter().chain(earlier);
    let (known, outcome) =
        known.find(|(known, _)| (known.client, known.channel) == (tag.client, tag.channel))?;
    match known.sequence.cmp(&tag.sequence) {
        Ordering::Less => None,
        Ordering::Equal => Some(Ok(outcome)),
        Ordering::Greater => Some(Err(passed(tag))),
    }
}

/// The refusal of a late duplicate.
pub(super) fn passed(tag: WriteTag) -> Error {
    let what = format!("write {tag}: a later write of this channel was seen");
    Error::new(ErrorCode::StaleSequence, what)
}

/// A SERVING member follows the predecessor's order.
pub(super) fn forwarded(op: &Op, received: &Received, meta: Option<&ChunkMeta>) -> Decision {
    let committed = meta.map_or(ChunkVersion(0), |m| m.committed);
    let removes = matches!(op.update.kind, UpdateKind::Remove);
    if received.version <= committed {
        let known = meta.map_or(Outcome::nothing(op.chain_version), Outcome::of);
        return Decision::Answer(Ok(known));
    }
    match meta.and_then(|m| m.pending.as_ref()) {
        Some(pending) if pending.version == received.version && pending.tag == op.tag() => {
            return Decision::Resume(pending.clone());
        }
        Some(_) if received.replace => {}
        Some(pending) => {
            let what = format!(
                "chunk {}: {} is pending here",
                op.update.key, pending.version
            );
            return Decision::Answer(Err(Error::new(ErrorCode::ReplicaMismatch, what)));
        }
        None => {}
    }
    if meta.is_none() && removes {
        // Removed here already, when this was sent the first time.
        return Decision::Answer(Ok(Outcome::nothing(op.chain_version)));
    }
    if received.replace {
        return Decision::Prepare {
            version: received.version,
            whole: true,
        };
    }
    if received.version.0 == committed.0 + 1 {
        return Decision::Prepare {
            version: received.version,
            whole: false,
        };
    }
    let what = format!(
        "chunk {}: {} cannot follow {committed}, which is committed here",
        op.update.key, received.version
    );
    Decision::Answer(Err(Error::new(ErrorCode::MissingVersion, what)))
}

/// A SYNCING member takes whole chunks and removals, whatever it has, unless it got a later one under
/// this same chain version: then this one was sent before that and was late. A part of a chunk comes
/// only after the whole: the predecessor knows that it was acknowledged under this chain version.
pub(super) fn syncing(op: &Op, received: &Received, meta: Option<&ChunkMeta>) -> Decision {
    if let Some(meta) = meta
        && meta.committed_chain == op.chain_version
        && meta.committed >= received.version
    {
        return Decision::Answer(Ok(Outcome::of(meta)));
    }
    if received.replace {
        return Decision::Prepare {
            version: received.version,
            whole: true,
        };
    }
    if matches!(op.update.kind, UpdateKind::Remove) {
        return match meta {
            None => Decision::Answer(Ok(Outcome::nothing(op.chain_version))),
            Some(_) => Decision::Drop,
        };
    }
    match meta.map(|meta| (meta.committed, meta.pending.as_ref())) {
        Some((_, Some(pending)))
            if pending.version == received.version && pending.tag == op.tag() =>
        {
            Decision::Resume(pending.clone())
        }
        Some((committed, None)) if received.version.0 == committed.0 + 1 => Decision::Prepare {
            version: received.version,
            whole: false,
        },
        _ => {
            let what = format!("target is syncing and needs chunk {} whole", op.update.key);
            Decision::Answer(Err(Error::new(ErrorCode::MissingVersion, what)))
        }
    }
}

impl Op {
    fn tag(&self) -> WriteTag {
        self.update.tag.unwrap_or_default()
    }
}

pub(super) fn engine_kind(op: &Op, whole: bool) -> PrepareKind {
    match &op.update.kind {
        UpdateKind::Write {
            data, checksums, ..
        } if whole => PrepareKind::Replace {
            data: Bytes::clone(data),
            checksums: checksums.clone(),
            recent: op
                .received
                .as_ref()
                .map_or_else(Arc::default, |r| Arc::clone(&r.recent)),
        },
        UpdateKind::Write {
            offset,
            data,
            checksums,
            size_hint,
        } => PrepareKind::Write {
            offset: *offset,
            data: Bytes::clone(data),
            checksums: checksums.clone(),
            size_hint: *size_hint,
        },
        // The head has seen that the chunk is no longer than it may be.
        UpdateKind::Truncate { len, .. } => PrepareKind::Truncate { len: *len },
        UpdateKind::Remove => PrepareKind::Remove,
    }
}
