//! Injected I/O failures, for tests only.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::ring::IoJob;

/// The errno that the next I/Os of each kind fail with; 0: none.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) reads: AtomicI32,
    pub(crate) writes: AtomicI32,
    pub(crate) flushes: AtomicI32,
    /// Not 0: the next index write fails.
    pub(crate) index: AtomicI32,
    /// No flush without a request that asks for it.
    pub(crate) no_idle_flush: AtomicBool,
}

impl Faults {
    pub(super) fn check(&self, job: &IoJob) -> Option<io::Error> {
        let errno = match job {
            IoJob::Read { .. } => self.reads.load(Ordering::SeqCst),
            IoJob::Write { write, .. } => match self.writes.load(Ordering::SeqCst) {
                0 if write.durable => self.flushes.load(Ordering::SeqCst),
                errno => errno,
            },
            IoJob::Flush { .. } => self.flushes.load(Ordering::SeqCst),
            IoJob::Stop => 0,
        };
        (errno != 0).then(|| io::Error::from_raw_os_error(errno))
    }
}
