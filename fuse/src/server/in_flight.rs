//! Requests that are being served: what an interrupt and the watchdog look up.
//!
//! The kernel sends an interrupt when the program that waits gets a signal, and then waits on, unable to be
//! killed, until the request is answered. Most requests are answered within milliseconds, and a program that
//! handles a signal (a timer, a child's end) does not expect EINTR from a file: so an interrupt counts only once
//! the request has gone on for a while longer. Then it is answered EINTR and finishes unseen; waiting for a lock ends at
//! once, and really.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long a request goes on after an interrupt: longer than a busy cluster takes, and short for who waits at a keyboard.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Locks, so that requests do not meet.
const SHARDS: usize = 16;

/// Requests by the number that the kernel gave them.
#[derive(Default)]
pub(super) struct InFlight {
    shards: [Mutex<HashMap<u64, Arc<Flight>>>; SHARDS],
}

/// One request.
pub(super) struct Flight {
    operation: &'static str,
    node: u64,
    since: Instant,
    /// It may take as long as it likes.
    patient: bool,
    /// It was found to be overdue.
    reported: AtomicBool,
    interrupt: Notify,
}

impl Flight {
    /// Returns when the request has been interrupted and `patience` has passed.
    pub(super) async fn interrupted(&self, patience: Duration) {
        self.interrupt.notified().await;
        tokio::time::sleep(patience).await;
    }
}

/// A request's place in the table; dropping it gives the place up.
pub(super) struct Ticket {
    table: Arc<InFlight>,
    unique: u64,
    pub(super) flight: Arc<Flight>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.table.shard(self.unique).lock().remove(&self.unique);
        if self.flight.reported.load(Ordering::Relaxed) {
            let Flight {
                operation, node, ..
            } = *self.flight;
            let seconds = self.flight.since.elapsed().as_secs();
            tracing::info!(
                operation,
                node,
                seconds,
                "a request that took long has ended"
            );
        }
    }
}

impl InFlight {
    fn shard(&self, unique: u64) -> &Mutex<HashMap<u64, Arc<Flight>>> {
        // The kernel counts in steps of two.
        &self.shards[(unique / 2) as usize % SHARDS]
    }

    /// A request that is to be answered soon.
    pub(super) fn begin(
        self: &Arc<Self>,
        unique: u64,
        operation: &'static str,
        node: u64,
    ) -> Ticket {
        self.enter(unique, operation, node, false)
    }

    /// A request that waits for other programs.
    pub(super) fn begin_patient(
        self: &Arc<Self>,
        unique: u64,
        operation: &'static str,
        node: u64,
    ) -> Ticket {
        self.enter(unique, operation, node, true)
    }

    fn enter(
        self: &Arc<Self>,
        unique: u64,
        operation: &'static str,
        node: u64,
        patient: bool,
    ) -> Ticket {
        let flight = Arc::new(Flight {
            operation,
            node,
            since: Instant::now(),
            patient,
            reported: AtomicBool::new(false),
            interrupt: Notify::new(),
        });
        self.shard(unique).lock().insert(unique, flight.clone());
        Ticket {
            table: self.clone(),
            unique,
            flight,
        }
    }

    /// Who waits for this request wants to leave. False if there is no such request: it has been answered, or has
    /// not been read yet.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        let shard = self.shard(unique).lock();
        let found = shard.get(&unique);
        found.is_some_and(|flight| {
            flight.interrupt.notify_one();
            true
        })
    }

    /// Names in the log, once, each request that has been served for longer than `limit`; answers how many there are.
    pub(super) fn report_overdue(&self, limit: Duration) -> usize {
        let mut overdue = 0;
        for shard in &self.shards {
            for flight in shard.lock().values() {
                let age = flight.since.elapsed();
                if age < limit || flight.patient {
                    continue;
                }
                overdue += 1;
                if !flight.reported.swap(true, Ordering::Relaxed) {
                    let Flight {
                        operation, node, ..
                    } = **flight;
                    tracing::warn!(
                        operation,
                        node,
                        seconds = age.as_secs(),
                        "a request has not been answered yet; see what is wrong with: emberfs health"
                    );
                }
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_interrupt_reaches_its_request_and_no_other() {
        let table = Arc::new(InFlight::default());
        let first = table.begin(2, "read", 7);
        let second = table.begin(34, "read", 7);
        assert!(table.interrupt(2));
        assert!(!table.interrupt(4), "no such request");
        // Sent before anybody waited for it, it is not lost.
        first.flight.interrupted(PATIENCE).await;
        let other = second.flight.interrupted(PATIENCE);
        let other = tokio::time::timeout(PATIENCE * 10, other).await;
        other.expect_err("nobody interrupted the second");
        drop(first);
        assert!(!table.interrupt(2), "it has been answered");
    }

    #[tokio::test]
    async fn overdue_requests_are_counted_until_they_end() {
        let table = Arc::new(InFlight::default());
        let tickets: Vec<_> = (0..40).map(|i| table.begin(2 * i, "read", i)).collect();
        let _waiter = table.begin_patient(99, "setlkw", 1);
        assert_eq!(table.report_overdue(Duration::from_mins(1)), 0);
        assert_eq!(table.report_overdue(Duration::ZERO), 40);
        assert!(tickets[0].flight.reported.load(Ordering::Relaxed));
        drop(tickets);
        assert_eq!(table.report_overdue(Duration::ZERO), 0);
    }
}
