//! How far the resync is that a target leads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The rate is that of about so long ago until now: long enough to be steady, short enough to follow a
/// changed limit.
const WINDOW: Duration = Duration::from_secs(5);

/// Counters of the running pass, and of all passes since the start.
#[derive(Default)]
pub(in crate::node) struct Progress {
    /// Chunks compared, and brought to the successor where they differed.
    chunks: AtomicU64,
    /// Chunks in all, known when both sides have been compared once.
    chunks_total: AtomicU64,
    /// Bytes sent by the pass.
    bytes: AtomicU64,
    /// Bytes of chunks that differed when the pass began.
    bytes_total: AtomicU64,
    /// Bytes sent by all passes since the start of the process.
    sent: AtomicU64,
    window: Mutex<Option<Window>>,
}

/// Two marks between which the rate is taken.
#[derive(Clone, Copy)]
struct Window {
    from: (Instant, u64),
    middle: (Instant, u64),
}

/// What a heartbeat tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::node) struct Snapshot {
    pub(in crate::node) chunks: u64,
    pub(in crate::node) chunks_total: u64,
    pub(in crate::node) bytes: u64,
    pub(in crate::node) bytes_total: u64,
    pub(in crate::node) bytes_per_second: u64,
    pub(in crate::node) sent: u64,
}

impl Progress {
    /// A pass begins.
    pub(super) fn begin(&self) {
        for counter in [
            &self.chunks,
            &self.chunks_total,
            &self.bytes,
            &self.bytes_total,
        ] {
            counter.store(0, Relaxed);
        }
        *self.window.lock() = None;
    }

    /// So many more chunks are there, and so many bytes of them differ.
    pub(super) fn found(&self, chunks: u64, bytes: u64) {
        self.chunks_total.fetch_add(chunks, Relaxed);
        self.bytes_total.fetch_add(bytes, Relaxed);
    }

    /// So many more chunks are the same on both sides now.
    pub(super) fn done(&self, chunks: u64) {
        self.chunks.fetch_add(chunks, Relaxed);
    }

    /// A chunk goes out.
    pub(in crate::node) fn sending(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Bytes sent by the pass, and bytes that differed when it began.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.bytes.load(Relaxed), self.bytes_total.load(Relaxed))
    }

    /// Bytes sent since the start of the process.
    pub(in crate::node) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Everything, at `now`; to be asked regularly, for the rate.
    pub(in crate::node) fn snapshot(&self, now: Instant) -> Snapshot {
        let (bytes, bytes_total) = self.bytes();
        let mut window = self.window.lock();
        let marks = window.get_or_insert(Window {
            from: (now, bytes),
            middle: (now, bytes),
        });
        if now - marks.middle.0 >= WINDOW / 2 {
            *marks = Window {
                from: marks.middle,
                middle: (now, bytes),
            };
        }
        let seconds = (now - marks.from.0).as_secs_f64();
        let moved = bytes.saturating_sub(marks.from.1) as f64;
        let chunks = self.chunks.load(Relaxed);
        Snapshot {
            chunks,
            // Chunks that were created meanwhile are compared, too.
            chunks_total: self.chunks_total.load(Relaxed).max(chunks),
            bytes,
            bytes_total: bytes_total.max(bytes),
            bytes_per_second: if seconds > 0.0 {
                (moved / seconds) as u64
            } else {
                0
            },
            sent: self.sent(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_follows_what_is_sent_now() {
        let progress = Progress::default();
        progress.begin();
        progress.found(100, 1 << 30);
        let second = async |bytes| {
            progress.sending(bytes);
            tokio::time::sleep(Duration::from_secs(1)).await;
            progress.snapshot(Instant::now()).bytes_per_second
        };
        progress.snapshot(Instant::now());
        assert_eq!(second(1000).await, 1000);
        for _ in 0..10 {
            second(1000).await;
        }
        for _ in 0..6 {
            second(10).await;
        }
        assert_eq!(second(10).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pass_starts_over_and_the_sum_of_all_goes_on() {
        let progress = Progress::default();
        progress.begin();
        progress.found(3, 30);
        progress.sending(30);
        progress.done(3);
        progress.begin();
        progress.found(5, 50);
        progress.sending(10);
        progress.done(6);
        let seen = progress.snapshot(Instant::now());
        let want = Snapshot {
            chunks: 6,
            chunks_total: 6,
            bytes: 10,
            bytes_total: 50,
            bytes_per_second: 0,
            sent: 40,
        };
        assert_eq!(seen, want);
    }
}
