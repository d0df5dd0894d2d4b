//! What live writes have brought to the syncing successor: a pass need not send it again.
//!
//! A live write to a SYNCING successor carries the whole chunk, and every later change of that chunk goes
//! the same way while the chain version lasts. So a chunk that was forwarded once under the chain version
//! of the pass is up to date there for the rest of the pass, whatever the comparison saw before.

use std::collections::HashSet;

use emberfs_proto::ids::{ChainVersion, ChunkKey};
use parking_lot::Mutex;

/// Chunks that are remembered; others are sent twice at worst.
const MAX_CHUNKS: usize = 1 << 16;

/// Chunks that the successor acknowledged whole during the pass.
#[derive(Default)]
pub(crate) struct LiveCopies {
    pass: Mutex<Option<(ChainVersion, HashSet<ChunkKey>)>>,
}

impl LiveCopies {
    /// A pass under this chain version begins; what is known of older ones is void.
    pub(crate) fn begin(&self, version: ChainVersion) {
        *self.pass.lock() = Some((version, HashSet::new()));
    }

    /// The pass is complete.
    pub(crate) fn end(&self, version: ChainVersion) {
        let mut pass = self.pass.lock();
        if pass
            .as_ref()
            .is_some_and(|(current, _)| *current == version)
        {
            *pass = None;
        }
    }

    /// The successor has acknowledged the chunk, whole or as removed, under this chain version.
    pub(crate) fn acknowledged(&self, version: ChainVersion, key: ChunkKey) {
        if let Some((current, keys)) = &mut *self.pass.lock()
            && *current == version
            && keys.len() < MAX_CHUNKS
        {
            keys.insert(key);
        }
    }

    /// Whether the successor is up to date about this chunk.
    pub(crate) fn holds(&self, version: ChainVersion, key: ChunkKey) -> bool {
        let pass = self.pass.lock();
        pass.as_ref()
            .is_some_and(|(current, keys)| *current == version && keys.contains(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_running_pass_heard_counts() {
        let (copies, key) = (LiveCopies::default(), ChunkKey::new(1, 2));
        copies.acknowledged(ChainVersion(3), key);
        assert!(!copies.holds(ChainVersion(3), key), "no pass was running");
        copies.begin(ChainVersion(3));
        copies.acknowledged(ChainVersion(2), key);
        assert!(!copies.holds(ChainVersion(3), key), "of an older chain");
        copies.acknowledged(ChainVersion(3), key);
        assert!(copies.holds(ChainVersion(3), key));
        copies.begin(ChainVersion(5));
        assert!(!copies.holds(ChainVersion(5), key) && !copies.holds(ChainVersion(3), key));
    }
}
