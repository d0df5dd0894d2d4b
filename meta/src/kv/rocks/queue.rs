//! Who commits: one of those who wait.
//!
//! Whoever finds nobody committing does it himself, for all that wait by then; when he is done and others have come
//! meanwhile, the first of them goes on. So a transaction that is alone is committed on its own thread,
//! without a change of threads, and many that come together still share one synced write. (As leader and followers in
//! RocksDB's own write path, and in group commit of databases before it.)

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};

use parking_lot::{Condvar, Mutex};

use super::committer::Committer;
use crate::kv::transaction::CommitRequest;
use crate::kv::{CommitVersion, KvError, KvResult};

/// Transactions that may wait; more are refused with [`KvError::Throttled`]. Twice tokio's blocking pool, which
/// bounds the callers.
const MAX_WAITING: usize = 1024;
/// Transactions in one group at most.
pub(super) const MAX_GROUP: usize = 512;
/// A group is closed when its transactions exceed this many bytes, so that one batch stays well
/// below a write buffer.
pub(super) const MAX_GROUP_BYTES: usize = 16 << 20;

/// What a waiting transaction is told.
#[derive(Debug)]
pub(super) enum Word {
    /// Its outcome.
    Answer(KvResult<CommitVersion>),
    /// It is its turn to commit, for itself and for those behind it.
    Lead,
}

/// A transaction that waits.
pub(super) struct Ticket {
    pub(super) request: CommitRequest,
    /// Has room for every word that can come, so nobody waits to say it.
    pub(super) tell: SyncSender<Word>,
}

/// See the module.
pub(super) struct CommitQueue {
    waiting: Mutex<Waiting>,
    /// Nobody leads.
    idle: Condvar,
    /// Held by who leads.
    committer: Mutex<Committer>,
}

#[derive(Default)]
struct Waiting {
    tickets: VecDeque<Ticket>,
    led: bool,
    /// Why no more are taken.
    closed: Option<String>,
}

/// The lead; dropping it passes it on.
struct Lead<'a>(&'a CommitQueue);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        if std::thread::panicking() {
            // Nobody knows what became of the group, nor what the committer still knows.
            let why = "a commit panicked; see the log, and restart the metadata server";
            waiting.closed = Some(why.to_owned());
            waiting.tickets.clear();
        }
        if let Some(next) = waiting.tickets.front() {
            // Its thread waits for words until it has its answer.
            let _ = next.tell.try_send(Word::Lead);
        } else {
            waiting.led = false;
            self.0.idle.notify_all();
        }
    }
}

/// Takes the next group off the front.
pub(super) fn take_group(tickets: &mut VecDeque<Ticket>) -> Vec<Ticket> {
    let mut group = Vec::new();
    let mut bytes = 0;
    while group.len() < MAX_GROUP
        && bytes < MAX_GROUP_BYTES
        && let Some(ticket) = tickets.pop_front()
    {
        bytes += ticket.request.bytes;
        group.push(ticket);
    }
    group
}

impl CommitQueue {
    pub(super) fn new(committer: Committer) -> Self {
        Self {
            waiting: Mutex::default(),
            idle: Condvar::new(),
            committer: Mutex::new(committer),
        }
    }

    /// Commits, alone or with others. Blocks for the time of one or two synced writes.
    pub(super) fn commit(&self, request: CommitRequest) -> KvResult<CommitVersion> {
        // An answer, and before it perhaps the lead.
        let (tell, told) = sync_channel(2);
        let mut lead = {
            let mut waiting = self.waiting.lock();
            if let Some(why) = &waiting.closed {
                return Err(KvError::Closed(why.clone()));
            }
            if waiting.tickets.len() >= MAX_WAITING {
                return Err(KvError::Throttled);
            }
            waiting.tickets.push_back(Ticket { request, tell });
            let first = !std::mem::replace(&mut waiting.led, true);
            first.then(|| Lead(self))
        };
        loop {
            if let Some(lead) = lead.take() {
                let mut committer = self.committer.lock();
                let group = take_group(&mut self.waiting.lock().tickets);
                committer.commit(group);
                drop(committer);
                drop(lead);
            }
            match told.recv() {
                Ok(Word::Answer(answer)) => return answer,
                Ok(Word::Lead) => lead = Some(Lead(self)),
                // Whoever committed it has panicked.
                Err(_) => {
                    let why = "a commit panicked; see the log";
                    return Err(KvError::MaybeCommitted(why.into()));
                }
            }
        }
    }

    /// Takes no more; returns when all that wait are committed.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting
            .closed
            .get_or_insert_with(|| "it was closed".to_owned());
        self.idle.wait_while(&mut waiting, |waiting| waiting.led);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rocksdb::{DB, WriteBatch};

    use super::super::committer::{Counters, WriteBatchFn, write_synced};
    use super::super::open;
    use super::*;
    use crate::kv::Clock;
    use crate::kv::conflict::{ReadSet, WriteSet};
    use crate::kv::mutations::{Bounds, Mutations};

    fn request() -> CommitRequest {
        let mut mutations = Mutations::default();
        mutations.put("key".into(), "value".into());
        CommitRequest {
            epoch: 0,
            read_version: 0,
            reads: ReadSet::default(),
            writes: WriteSet::new(&mutations, std::collections::BTreeSet::new()),
            mutations,
            bounds: Bounds::default(),
            bytes: 100,
        }
    }

    fn queue(
        directory: &std::path::Path,
        write: WriteBatchFn,
    ) -> (Arc<CommitQueue>, Arc<Counters>) {
        let db = Arc::new(open::open(directory).unwrap());
        let stats = Arc::new(Counters::default());
        let committer = Committer::new(db, 0, Clock::manual(), stats.clone(), write);
        (Arc::new(CommitQueue::new(committer)), stats)
    }

    fn slow(db: &DB, batch: WriteBatch) -> Result<(), String> {
        std::thread::sleep(std::time::Duration::from_millis(5));
        write_synced(db, batch)
    }

    #[test]
    fn many_threads_share_groups_and_each_hears_its_own_version() {
        let directory = tempfile::tempdir().unwrap();
        let (queue, stats) = queue(directory.path(), slow);
        let threads = (0..16).map(|_| {
            let queue = queue.clone();
            let commit = move || queue.commit(request()).unwrap().0;
            std::thread::spawn(move || (0..20).map(|_| commit()).collect::<Vec<_>>())
        });
        let threads: Vec<_> = threads.collect();
        let mut versions: Vec<u64> = Vec::new();
        for thread in threads {
            versions.extend(thread.join().unwrap());
        }
        versions.sort_unstable();
        assert_eq!(versions, (1..=320).collect::<Vec<_>>());
        let stats = stats.read();
        assert_eq!(stats.committed, 320);
        assert!(stats.groups < 160, "{} groups", stats.groups);
        queue.close();
        assert!(matches!(queue.commit(request()), Err(KvError::Closed(_))));
    }

    #[test]
    fn after_a_panic_nobody_waits_for_ever() {
        static WRITES: AtomicUsize = AtomicUsize::new(0);
        fn breaks(db: &DB, batch: WriteBatch) -> Result<(), String> {
            assert!(
                WRITES.fetch_add(1, Ordering::Relaxed) < 3,
                "a broken disk driver"
            );
            slow(db, batch)
        }
        let directory = tempfile::tempdir().unwrap();
        let (queue, _) = queue(directory.path(), breaks);
        let threads = (0..8).map(|_| {
            let queue = queue.clone();
            std::thread::spawn(move || while queue.commit(request()).is_ok() {})
        });
        let threads: Vec<_> = threads.collect();
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err());
        assert_eq!(panicked.count(), 1);
        assert!(matches!(queue.commit(request()), Err(KvError::Closed(_))));
        queue.close();
    }
}
