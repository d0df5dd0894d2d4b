//! Making commits durable, many at a time.
//!
//! A commit is written to RocksDB's log and visible at once; a thread of its own flushes the log, and whoever must not answer
//! before his commit is durable waits for that. While the disk flushes, the next commits gather: they
//! share the next flush. (Group commit, as databases have it since the 1980s.) What nobody waits for is flushed within
//! [`SOON`], together with what comes meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rocksdb::DB;

use crate::kv::{KvError, KvResult, TellDurable};

/// What nobody waits for is durable after this and one flush.
const SOON: Duration = Duration::from_millis(10);

/// Flushes the log. A parameter so that a test can make it fail.
pub(super) type FlushFn = fn(&DB) -> Result<(), String>;

pub(super) fn flush(db: &DB) -> Result<(), String> {
    db.flush_wal(true).map_err(rocksdb::Error::into_string)
}

/// See the module.
pub(super) struct Log {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to flush, sooner or later.
    work: Condvar,
    /// Something has become durable, or never will.
    done: Condvar,
    flushes: AtomicU64,
}

struct State {
    /// The last version in the log.
    written: u64,
    /// The last one that somebody waits for.
    wanted: u64,
    durable: u64,
    /// Since when there is something to flush.
    since: Instant,
    waiting: Vec<(u64, TellDurable)>,
    /// Why nothing becomes durable any more.
    failed: Option<String>,
    closing: bool,
}

impl State {
    fn outcome(&self, version: u64) -> Option<KvResult<()>> {
        if version <= self.durable {
            return Some(Ok(()));
        }
        let failed = self.failed.clone()?;
        Some(Err(KvError::MaybeCommitted(failed)))
    }

    /// Those who need not wait any longer.
    fn take_done(&mut self) -> Vec<(TellDurable, KvResult<()>)> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut done = Vec::new();
        for (version, tell) in waiting {
            match self.outcome(version) {
                Some(outcome) => done.push((tell, outcome)),
                None => self.waiting.push((version, tell)),
            }
        }
        done
    }
}

impl Log {
    /// The log of a store whose commits up to `version` are durable.
    pub(super) fn start(db: Arc<DB>, version: u64, flush: FlushFn) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                written: version,
                wanted: version,
                durable: version,
                since: Instant::now(),
                waiting: Vec::new(),
                failed: None,
                closing: false,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
            flushes: AtomicU64::new(0),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("metadata-log".into())
                .spawn(move || shared.run(&db, flush))?
        };
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Everything up to `version` is in the log.
    pub(super) fn written(&self, version: u64) {
        let mut state = self.shared.state.lock();
        if state.written == state.durable {
            state.since = Instant::now();
            // It sleeps without a limit.
            self.shared.work.notify_one();
        }
        state.written = state.written.max(version);
    }

    /// Tells when everything up to `version` is durable; at once if it is.
    pub(super) fn when_durable(&self, version: u64, tell: TellDurable) {
        let outcome = {
            let mut state = self.shared.state.lock();
            match state.outcome(version) {
                Some(outcome) => outcome,
                None => {
                    state.waiting.push((version, tell));
                    self.shared.want(&mut state, version);
                    return;
                }
            }
        };
        tell(outcome);
    }

    /// Blocks until everything up to `version` is durable.
    pub(super) fn wait(&self, version: u64) -> KvResult<()> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(outcome) = state.outcome(version) {
                return outcome;
            }
            self.shared.want(&mut state, version);
            self.shared.done.wait(&mut state);
        }
    }

    /// Everything up to there is durable.
    pub(super) fn durable(&self) -> u64 {
        self.shared.state.lock().durable
    }

    /// Why nothing becomes durable any more.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.state.lock().failed.clone()
    }

    /// Flushes since the start.
    pub(super) fn flushes(&self) -> u64 {
        self.shared.flushes.load(Ordering::Relaxed)
    }

    /// Flushes what is written, and ends. Nothing may be written any more.
    pub(super) fn close(&self) {
        {
            let mut state = self.shared.state.lock();
            state.closing = true;
            self.shared.work.notify_one();
        }
        if let Some(thread) = self.thread.lock().take() {
            // Its panic has been reported, and nobody is left to hear of it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn want(&self, state: &mut State, version: u64) {
        if version > state.wanted {
            state.wanted = version;
            self.work.notify_one();
        }
    }

    fn run(&self, db: &DB, flush: FlushFn) {
        while let Some(target) = self.next() {
            let flushed = flush(db);
            self.flushes.fetch_add(1, Ordering::Relaxed);
            let done = {
                let mut state = self.state.lock();
                match flushed {
                    Ok(()) => state.durable = target,
                    Err(why) => {
                        tracing::error!(
                            why,
                            "the metadata log cannot be flushed: no more is committed"
                        );
                        state.failed = Some(why);
                    }
                }
                state.since = Instant::now();
                self.done.notify_all();
                state.take_done()
            };
            for (tell, outcome) in done {
                tell(outcome);
            }
        }
    }

    /// Waits until something is to be flushed; answers up to where. `None`: never again.
    fn next(&self) -> Option<u64> {
        let mut state = self.state.lock();
        loop {
            if state.failed.is_some() {
                return None;
            }
            let open = state.written > state.durable;
            if open && (state.wanted > state.durable || state.closing) {
                return Some(state.written);
            }
            if open {
                let due = state.since + SOON;
                if self.work.wait_until(&mut state, due).timed_out() {
                    return Some(state.written);
                }
            } else if state.closing {
                return None;
            } else {
                self.work.wait(&mut state);
            }
        }
    }
}
