//! Tasks that begin where they are made.
//!
//! A task of a runtime begins on one of its threads, which has to be woken for that; on a host whose cores sleep in between,
//! that takes longer than most requests. So the first step is made here, on the caller's thread; what has to wait then goes on
//! as a task, on the thread that wakes it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

/// Nobody polls it, nobody is about to.
const WAITING: u8 = 0;
/// Somebody polls it, or is about to.
const TAKEN: u8 = 1;
/// It was woken while it was polled.
const WOKEN: u8 = 2;
/// It has ended.
const DONE: u8 = 3;

struct Eager {
    runtime: Handle,
    state: AtomicU8,
    /// Locked by who has taken it: never contended.
    work: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

/// Runs `work` to its end, here until it has to wait for the first time, then on `runtime`. A panic ends it, and nothing
/// else.
pub fn spawn_eager(runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
    let task = Arc::new(Eager {
        runtime: runtime.clone(),
        state: AtomicU8::new(TAKEN),
        work: Mutex::new(Some(Box::pin(work))),
    });
    let _within = runtime.enter();
    task.poll();
}

impl Eager {
    /// One step, by who has taken it.
    fn poll(self: Arc<Self>) {
        let waker = Waker::from(self.clone());
        let ended = {
            let mut work = self.work.lock();
            let step = work.as_mut().map(|work| {
                let mut context = Context::from_waker(&waker);
                // After a panic it is dropped and never looked at again.
                catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut context)))
            });
            let ended = !matches!(step, Some(Ok(Poll::Pending)));
            if ended {
                *work = None;
            }
            ended
        };
        if ended {
            self.state.store(DONE, Ordering::Release);
            return;
        }
        let waits =
            self.state
                .compare_exchange(TAKEN, WAITING, Ordering::AcqRel, Ordering::Acquire);
        if waits.is_err() {
            // Woken meanwhile: others of the runtime get their turn first.
            self.state.store(TAKEN, Ordering::Release);
            self.go_on();
        }
    }

    fn go_on(self: Arc<Self>) {
        let runtime = self.runtime.clone();
        runtime.spawn(async move { self.poll() });
    }
}

impl Wake for Eager {
    fn wake(self: Arc<Self>) {
        let woken = |state| match state {
            WAITING => Some(TAKEN),
            TAKEN => Some(WOKEN),
            _ => None,
        };
        let before = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, woken);
        if before == Ok(WAITING) {
            self.go_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn what_need_not_wait_is_done_on_the_callers_thread() {
        let runtime = runtime();
        let (tell, told) = mpsc::channel();
        spawn_eager(runtime.handle(), async move {
            tell.send(std::thread::current().id()).unwrap();
        });
        assert_eq!(told.try_recv(), Ok(std::thread::current().id()));
    }

    #[test]
    fn what_waits_goes_on_elsewhere_and_comes_to_its_end() {
        let runtime = runtime();
        let (tell, told) = mpsc::channel();
        for n in 0..100_u64 {
            let tell = tell.clone();
            spawn_eager(runtime.handle(), async move {
                for _ in 0..n % 7 {
                    tokio::task::yield_now().await;
                }
                tokio::time::sleep(Duration::from_micros(n)).await;
                let inner = tokio::spawn(async move { n });
                let n = inner.await.unwrap();
                tell.send((n, std::thread::current().id())).unwrap();
            });
        }
        drop(tell);
        let mut ended: Vec<u64> = told
            .iter()
            .map(|(n, thread)| {
                assert_ne!(thread, std::thread::current().id());
                n
            })
            .collect();
        ended.sort_unstable();
        assert_eq!(ended, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_ends_the_task_only() {
        let runtime = runtime();
        for waits in [false, true] {
            let (tell, told) = mpsc::channel::<()>();
            spawn_eager(runtime.handle(), async move {
                let _tell = tell;
                if waits {
                    tokio::task::yield_now().await;
                }
                panic!("a test's");
            });
            assert!(told.recv().is_err());
        }
    }

    #[test]
    fn what_is_dropped_unfinished_goes_with_its_last_waker() {
        let runtime = runtime();
        let (keep, end) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = mpsc::channel::<()>();
        spawn_eager(runtime.handle(), async move {
            let _tell = tell;
            let _ = end.await;
            std::future::pending::<()>().await;
        });
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(keep);
        assert!(told.recv().is_err(), "nobody can wake it any more");
    }
}
