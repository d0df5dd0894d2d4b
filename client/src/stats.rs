//! Counters of one client.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident;)+) => {
        /// What a client has done so far; see [`crate::Client::stats`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats { $($(#[$meta])* pub $name: u64,)+ }

        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)+ }

        impl Counters {
            /// The values now.
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /** Chunk ranges read from storage servers. */ chunk_reads;
    /** Bytes of them. */ read_bytes;
    /** Read requests repeated, at the same or another replica. */ read_retries;
    /** Reads that were slow and asked of a second replica too. */ hedges;
    /** Of these: the second replica answered first. */ hedge_wins;
    /** Replies whose bytes did not match their checksums. */ checksum_failures;
    /** Chunk writes sent and acknowledged. */ chunk_writes;
    /** Bytes of them. */ written_bytes;
    /** Write requests repeated. */ write_retries;
    /** Bytes requested by read-ahead. */ prefetched_bytes;
    /** Bytes of reads answered from read-ahead. */ prefetch_hit_bytes;
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
