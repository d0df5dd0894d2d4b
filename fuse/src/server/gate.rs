//! The bound on requests in flight.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lets at most so many requests in at a time; a device thread that comes too many waits, which
/// leaves further requests queued in the kernel. Requests in flight never need the device threads
/// to finish, or not for longer than a moment (`DROP_LIMIT`), so waiting there cannot lock up.
pub(crate) struct Gate {
    limit: usize,
    inside: Mutex<usize>,
    left: Condvar,
}

/// A place inside; dropping it leaves.
pub(crate) struct Pass(Arc<Gate>);

impl Gate {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            inside: Mutex::new(0),
            left: Condvar::new(),
        })
    }

    /// Blocks while the gate is full: for device threads only.
    pub(crate) fn enter(self: &Arc<Self>) -> Pass {
        let mut inside = self.inside.lock();
        self.left
            .wait_while(&mut inside, |inside| *inside >= self.limit);
        *inside += 1;
        Pass(self.clone())
    }

    /// Blocks until nobody is inside; false if that takes longer than `timeout`.
    pub(crate) fn wait_idle(&self, timeout: Duration) -> bool {
        let mut inside = self.inside.lock();
        !self
            .left
            .wait_while_for(&mut inside, |inside| *inside > 0, timeout)
            .timed_out()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *self.0.inside.lock() -= 1;
        self.0.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_limit_holds_and_leaving_lets_the_next_in() {
        let gate = Gate::new(2);
        let first = gate.enter();
        let second = gate.enter();
        let (entered, seen) = mpsc::channel();
        let waiting = gate.clone();
        let third = std::thread::spawn(move || {
            let pass = waiting.enter();
            entered.send(()).unwrap();
            drop(pass);
        });
        assert!(
            seen.recv_timeout(Duration::from_millis(50)).is_err(),
            "the gate was full"
        );
        drop(first);
        seen.recv_timeout(Duration::from_secs(10)).unwrap();
        third.join().unwrap();
        assert!(!gate.wait_idle(Duration::from_millis(10)));
        drop(second);
        assert!(gate.wait_idle(Duration::from_secs(10)));
    }
}
