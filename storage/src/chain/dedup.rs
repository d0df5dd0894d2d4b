//! Remembers finished writes, so that a retry is answered and not applied again.

use std::num::NonZeroUsize;

use emberfs_proto::ids::{ClientId, WriteTag};
use lru::LruCache;

use super::types::Outcome;

/// Channels remembered per target. A client uses a few hundred at most; the least recently used goes first.
const CHANNELS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Finished trims remembered per target.
const TRIMS: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// What is known about a tag.
pub(super) enum Seen {
    /// Nothing: do it.
    New,
    /// It was done, with this outcome.
    Done(Outcome),
    /// The channel has gone on to a later write.
    Passed,
}

/// Last finished write of each channel.
pub(super) struct Dedup {
    channels: LruCache<(ClientId, u32), (u64, Outcome)>,
    trims: LruCache<WriteTag, ()>,
}

impl Dedup {
    pub(super) fn new() -> Self {
        Self {
            channels: LruCache::new(CHANNELS),
            trims: LruCache::new(TRIMS),
        }
    }

    pub(super) fn check(&mut self, tag: WriteTag) -> Seen {
        match self.channels.get(&(tag.client, tag.channel)) {
            Some(&(sequence, outcome)) if sequence == tag.sequence => Seen::Done(outcome),
            Some(&(sequence, _)) if sequence > tag.sequence => Seen::Passed,
            _ => Seen::New,
        }
    }

    pub(super) fn record(&mut self, tag: WriteTag, outcome: Outcome) {
        let slot = (tag.client, tag.channel);
        if self
            .channels
            .peek(&slot)
            .is_none_or(|&(sequence, _)| sequence < tag.sequence)
        {
            self.channels.put(slot, (tag.sequence, outcome));
        }
    }

    pub(super) fn trim_done(&mut self, tag: WriteTag) {
        self.trims.put(tag, ());
    }

    pub(super) fn is_trim_done(&mut self, tag: WriteTag) -> bool {
        self.trims.get(&tag).is_some()
    }
}
