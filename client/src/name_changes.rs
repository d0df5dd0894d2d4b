//! Whether names and attributes that this client has changed may not be durable yet.
//!
//! Counted, not flagged: of two who sync at the same time, the second must not rely on an answer that the first still waits for.

use std::sync::atomic::{AtomicU64, Ordering};

/// See the module.
pub(crate) struct NameChanges {
    made: AtomicU64,
    durable: AtomicU64,
}

impl Default for NameChanges {
    /// One is assumed: that of a process before this one.
    fn default() -> Self {
        Self {
            made: AtomicU64::new(1),
            durable: AtomicU64::new(0),
        }
    }
}

impl NameChanges {
    /// The server has answered one.
    pub(crate) fn made(&self) {
        self.made.fetch_add(1, Ordering::AcqRel);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.made.load(Ordering::Acquire)
    }

    /// Whether the server has said of so many that they are durable.
    pub(crate) fn are_durable(&self, made: u64) -> bool {
        self.durable.load(Ordering::Acquire) >= made
    }

    /// How many there are, if the server has not said since that all of them are durable.
    pub(crate) fn open(&self) -> Option<u64> {
        let made = self.count();
        (!self.are_durable(made)).then_some(made)
    }

    /// The server has said it of so many.
    pub(crate) fn durable(&self, made: u64) {
        self.durable.fetch_max(made, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_relies_on_what_another_one_still_waits_for() {
        let names = NameChanges::default();
        let first = names.open().expect("that of an earlier process");
        assert_eq!(names.open(), Some(first), "nothing was answered yet");
        names.made();
        names.durable(first);
        let second = names.open().expect("made after the first one asked");
        names.durable(second);
        names.durable(first);
        assert_eq!(names.open(), None);
    }
}
