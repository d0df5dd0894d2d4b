//! What to do with a change once the chunk's record is known. Pure.

use bytes::Bytes;
use emberfs_proto::ids::{ChunkVersion, WriteTag};
use emberfs_proto::{Error, ErrorCode, Result};

use super::{Op, Received};
use crate::chain::types::{Outcome, Update, UpdateKind};
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
    if meta.committed.0 > 0 && op.update.tag.is_some_and(|tag| tag == meta.tag) {
        return Decision::Answer(Ok(Outcome::of(meta)));
    }
    if matches!(op.update.kind, UpdateKind::Truncate { len } if len >= meta.committed_len) {
        return nothing();
    }
    Decision::Prepare {
        version: ChunkVersion(meta.committed.0 + 1),
        whole: false,
    }
}

/// A SERVING member follows the predecessor's order.
pub(super) fn forwarded(op: &Op, received: Received, meta: Option<&ChunkMeta>) -> Decision {
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

/// A SYNCING member takes whole chunks and removals, whatever it has.
pub(super) fn syncing(op: &Op, received: Received, meta: Option<&ChunkMeta>) -> Decision {
    if received.replace {
        return Decision::Prepare {
            version: received.version,
            whole: true,
        };
    }
    if !matches!(op.update.kind, UpdateKind::Remove) {
        let what = format!("target is syncing and needs chunk {} whole", op.update.key);
        return Decision::Answer(Err(Error::new(ErrorCode::MissingVersion, what)));
    }
    match meta {
        None => Decision::Answer(Ok(Outcome::nothing(op.chain_version))),
        Some(_) => Decision::Drop,
    }
}

impl Op {
    fn tag(&self) -> WriteTag {
        self.update.tag.unwrap_or_default()
    }
}

pub(super) fn engine_kind(update: &Update, whole: bool) -> PrepareKind {
    match &update.kind {
        UpdateKind::Write {
            data, checksums, ..
        } if whole => PrepareKind::Replace {
            data: Bytes::clone(data),
            checksums: checksums.clone(),
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
        UpdateKind::Truncate { len } => PrepareKind::Truncate { len: *len },
        UpdateKind::Remove => PrepareKind::Remove,
    }
}
