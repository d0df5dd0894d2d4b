//! What a SYNCING successor certainly holds, so that it need not be sent whole again.

use emberfs_proto::ids::{ChainVersion, ChunkKey};

use super::{Op, Replica};
use crate::chain::types::{Outcome, UpdateKind, View};

/// Chunks that are remembered, 16 bytes each; others are sent whole again.
const MAX_MIRRORED: usize = 1 << 16;

impl Replica {
    /// Whether the SYNCING successor has acknowledged the whole chunk under chain version `version`, which is
    /// in force here: a resync need not send it.
    pub fn is_mirrored(&self, version: ChainVersion, key: ChunkKey) -> bool {
        let in_force = self
            .view
            .as_ref()
            .is_some_and(|view| view.version == version);
        in_force && self.mirrored.contains(&key)
    }

    /// The SYNCING successor has answered about a chunk that it was sent: `holds` says whether it holds it as
    /// this target does.
    pub(super) fn mirror(&mut self, key: ChunkKey, holds: bool) {
        let syncing = |view: &View| view.successor.is_some_and(|next| next.syncing);
        if !holds {
            self.mirrored.remove(&key);
        } else if self.view.as_ref().is_some_and(syncing) && self.mirrored.len() < MAX_MIRRORED {
            self.mirrored.insert(key);
        }
    }
}

impl Op {
    /// Whether the successor answers for the very content that this work made here. Not of a removal: a chunk
    /// that is created again comes whole anyway.
    pub(super) fn is_mirrored_by(&self, theirs: &Outcome) -> bool {
        let removes = matches!(self.update.kind, UpdateKind::Remove);
        !removes && (theirs.version, theirs.checksum) == (self.version, self.checksum)
    }
}
