//! The chunk metadata that is in memory.
//!
//! **Invariant.** All who touch a chunk share one [`Entry`]; an entry is dropped only while nobody else
//! holds it. So there is never a second copy of a record that could go stale, and a record that
//! is being removed cannot be loaded again from the index behind the remover's back.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use emberfs_proto::ids::{ChunkKey, TargetId};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::record::Record;

const SHARDS: usize = 16;
/// Entries in use that an insertion skips when it looks for one to drop; past that the shard
/// grows beyond its share (by no more than what is in use).
const MAX_SKIPS: usize = 8;

/// What is known of a chunk.
pub(super) enum Slot {
    /// The index was not asked yet.
    Unknown,
    /// What the index says; `None`: no such chunk.
    Known(Option<Arc<Record>>),
}

/// One chunk.
pub(super) struct Entry {
    /// Held by whoever changes the record, until the change is in the index and in `slot`.
    pub(super) gate: Arc<AsyncMutex<()>>,
    /// The record as readers see it; locked for moments only.
    pub(super) slot: Mutex<Slot>,
    /// The pending version in the slot has bytes on their way to the disk; who writes them holds the gate.
    pub(super) writing: AtomicBool,
}

/// While it lives, [`Entry::writing`] is set and the entry stays in the cache.
pub(super) struct Writing(Arc<Entry>);

impl Writing {
    pub(super) fn begin(entry: &Arc<Entry>) -> Self {
        entry.writing.store(true, Ordering::Release);
        Self(Arc::clone(entry))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writing.store(false, Ordering::Release);
    }
}

type Key = (TargetId, ChunkKey);

/// A bounded map of entries, least recently used out first.
pub(super) struct Cache {
    shards: [Mutex<LruCache<Key, Arc<Entry>>>; SHARDS],
    per_shard: usize,
    hasher: RandomState,
}

impl Cache {
    pub(super) fn new(entries: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::new(LruCache::unbounded())),
            per_shard: entries.div_ceil(SHARDS).max(1),
            hasher: RandomState::new(),
        }
    }

    /// The entry of a chunk.
    pub(super) fn entry(&self, target: TargetId, chunk: ChunkKey) -> Arc<Entry> {
        let key = (target, chunk);
        let mut shard = self.shards[self.hasher.hash_one(key) as usize % SHARDS].lock();
        if let Some(entry) = shard.get(&key) {
            return Arc::clone(entry);
        }
        let mut skips = 0;
        while shard.len() >= self.per_shard && skips < MAX_SKIPS {
            let Some((&oldest, entry)) = shard.peek_lru() else {
                break;
            };
            // The map's own reference: nobody can take another one while the shard is locked.
            if Arc::strong_count(entry) == 1 {
                shard.pop(&oldest);
            } else {
                shard.promote(&oldest);
                skips += 1;
            }
        }
        let gate = Arc::new(AsyncMutex::new(()));
        let entry = Arc::new(Entry {
            gate,
            slot: Mutex::new(Slot::Unknown),
            writing: AtomicBool::new(false),
        });
        shard.put(key, Arc::clone(&entry));
        entry
    }

    /// Forgets a target that nobody uses any more.
    pub(super) fn forget(&self, target: TargetId) {
        for shard in &self.shards {
            shard.lock().retain(|key, _| key.0 != target);
        }
    }

    /// Entries in memory.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_never_drops_an_entry_in_use() {
        let cache = Cache::new(64);
        let held = cache.entry(TargetId(1), ChunkKey::new(1, 0));
        for inode in 0..10_000 {
            cache.entry(TargetId(1), ChunkKey::new(inode, 1));
        }
        assert!(cache.len() <= 64);
        assert!(Arc::ptr_eq(
            &held,
            &cache.entry(TargetId(1), ChunkKey::new(1, 0))
        ));
        cache.forget(TargetId(1));
        assert_eq!(cache.len(), 0);
    }
}
