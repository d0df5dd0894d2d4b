//! The time that limits a transaction's age: the host's monotonic clock, or a test's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// A monotonic clock; clones share the time.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Nanoseconds of a clock moved by hand; none for the host's.
    manual: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// The host's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still until [`Self::advance`].
    pub fn manual() -> Self {
        Self {
            manual: Some(Arc::default()),
        }
    }

    /// Time since some fixed moment.
    pub fn now(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match &self.manual {
            Some(nanos) => Duration::from_nanos(nanos.load(Ordering::SeqCst)),
            None => START.elapsed(),
        }
    }

    /// Lets `time` pass: at once on a manual clock, by waiting on the host's.
    pub fn advance(&self, time: Duration) {
        match &self.manual {
            Some(nanos) => {
                nanos.fetch_add(time.as_nanos() as u64, Ordering::SeqCst);
            }
            None => park(time),
        }
    }
}

/// Blocks this thread for `time`, also through spurious wake-ups.
pub(super) fn park(time: Duration) {
    let started = Instant::now();
    while let Some(left) = time
        .checked_sub(started.elapsed())
        .filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}
