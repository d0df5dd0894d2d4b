//! The index's writer thread: group commit; and when a freed block may be reused.
//!
//! See [`super::index`] for what it guarantees.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::Result;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::classes::Loc;
use super::index::{Index, Op};
use super::lane::{Job, Lane, LaneEnd, Received};
use super::record::Pending;
use super::space::{SpaceJob, SpaceMap};
use super::types::Durability;

/// Requests in one group at most.
const MAX_GROUP: usize = 256;
/// Bytes in one group at most (a group ends with the request that passes this).
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Blocks freed by commits are reusable after this at the latest.
pub(super) const IDLE_FLUSH: Duration = Duration::from_millis(50);
/// Changes that happen together.
pub(super) struct Write {
    pub(super) ops: Vec<Op>,
    /// Flush before `done`.
    pub(super) durable: bool,
    /// Blocks that no record owns after this.
    pub(super) frees: Vec<Loc>,
    /// Runs on the writer thread, once the changes are visible or have failed.
    pub(super) done: Box<dyn FnOnce(Result<()>) + Send>,
}

/// What the writer can be asked for.
pub(super) enum WriteJob {
    Write(Write),
    /// Flushes all earlier writes, so that retired blocks are free.
    Flush(oneshot::Sender<Result<()>>),
    /// Blocks were retired: flush some time.
    Retired,
    Stop,
}

/// Blocks whose records are gone, but not yet for good: until the log is flushed.
#[derive(Default)]
pub(super) struct Retired(Mutex<Vec<Loc>>);

impl Retired {
    /// Adds blocks whose records' end is in the log. Whether they are the first since the last flush.
    pub(super) fn add(&self, map: &SpaceMap, frees: &[Loc]) -> bool {
        let mut retired = self.0.lock();
        let first = retired.is_empty() && !frees.is_empty();
        for &loc in frees {
            map.allocator.retire(loc);
            retired.push(loc);
        }
        first
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn take(&self) -> Vec<Loc> {
        std::mem::take(&mut self.0.lock())
    }

    fn put_back(&self, mut taken: Vec<Loc>) {
        self.0.lock().append(&mut taken);
    }
}

/// The writer thread.
pub(super) struct Writer {
    pub(super) index: Arc<Index>,
    pub(super) durability: Durability,
    pub(super) map: Arc<SpaceMap>,
    pub(super) space: Lane<SpaceJob>,
    pub(super) retired: Arc<Retired>,
    #[cfg(test)]
    pub(super) faults: Arc<super::faults::Faults>,
}

/// What one turn of the writer works on. The jobs hold their places in the lane until the end.
#[derive(Default)]
struct Group {
    lazy: Vec<Job<WriteJob>>,
    durable: Vec<Job<WriteJob>>,
    flushes: Vec<oneshot::Sender<Result<()>>>,
    bytes: usize,
    stop: bool,
}

impl Writer {
    /// The thread's body.
    pub(super) fn run(self, jobs: &LaneEnd<WriteJob>) {
        loop {
            let first = if self.retired.is_empty() || self.idles_unflushed() {
                jobs.recv()
            } else {
                match jobs.recv_timeout(IDLE_FLUSH) {
                    Received::Job(job) => Some(job),
                    Received::Closed => None,
                    Received::Nothing => {
                        // A failure shows in the health; the blocks stay retired.
                        let _ = self.flush();
                        continue;
                    }
                }
            };
            let Some(first) = first else { return };
            let mut group = Group::default();
            group.add(first);
            while !group.full() {
                let Received::Job(job) = jobs.try_recv() else {
                    break;
                };
                group.add(job);
            }
            let stop = group.stop;
            self.work(group);
            if stop {
                return;
            }
        }
    }

    fn work(&self, group: Group) {
        self.write(group.lazy, false);
        self.write(group.durable, true);
        if self.durability == Durability::Process {
            self.free(self.retired.take());
        }
        if !group.flushes.is_empty() || group.stop {
            let result = self.flush();
            for reply in group.flushes {
                let _ = reply.send(result.clone());
            }
        }
    }

    fn write(&self, jobs: Vec<Job<WriteJob>>, durable: bool) {
        if jobs.is_empty() {
            return;
        }
        let writes = jobs.iter().filter_map(|job| match &job.work {
            WriteJob::Write(write) => Some(write),
            _ => None,
        });
        let ops = writes.clone().flat_map(|write| &write.ops);
        let mut result = self.fault().and_then(|()| self.index.apply(ops));
        let mut covered = Vec::new();
        if result.is_ok() {
            for write in writes {
                self.retired.add(&self.map, &write.frees);
            }
            if durable && self.durability == Durability::Power {
                covered = self.retired.take();
                // Others write meanwhile: only what a write itself flushes would keep them waiting.
                result = self.index.flush();
            }
        }
        for job in jobs {
            if let WriteJob::Write(write) = job.work {
                (write.done)(result.clone());
            }
        }
        if result.is_ok() {
            self.free(covered);
        } else {
            self.retired.put_back(covered);
        }
    }

    #[cfg(test)]
    fn fault(&self) -> Result<()> {
        match self.faults.index.load(std::sync::atomic::Ordering::SeqCst) {
            0 => Ok(()),
            _ => {
                self.map.health.fail("injected index failure");
                self.map.health.writable()
            }
        }
    }

    #[cfg(test)]
    fn idles_unflushed(&self) -> bool {
        self.faults
            .no_idle_flush
            .load(std::sync::atomic::Ordering::SeqCst)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests hold the idle flush up")]
    fn idles_unflushed(&self) -> bool {
        false
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "tests inject failures here"
    )]
    fn fault(&self) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let covered = self.retired.take();
        if self.durability == Durability::Power
            && let Err(error) = self.index.flush()
        {
            self.retired.put_back(covered);
            return Err(error);
        }
        self.free(covered);
        Ok(())
    }

    /// What was retired before the last flush is free. Never after a failure: the records may
    /// come back.
    fn free(&self, covered: Vec<Loc>) {
        if self.map.health.writable().is_err() {
            return self.retired.put_back(covered);
        }
        for loc in covered {
            self.map.allocator.disown(loc);
            self.map.freed(&self.space, loc.class);
        }
    }
}

impl Group {
    fn add(&mut self, job: Job<WriteJob>) {
        match job.work {
            WriteJob::Write(ref write) => {
                self.bytes += write.ops.iter().map(size).sum::<usize>();
                if write.durable {
                    self.durable.push(job);
                } else {
                    self.lazy.push(job);
                }
            }
            WriteJob::Flush(reply) => self.flushes.push(reply),
            WriteJob::Retired => {}
            WriteJob::Stop => self.stop = true,
        }
    }

    fn full(&self) -> bool {
        let jobs = self.lazy.len() + self.durable.len() + self.flushes.len();
        self.stop || jobs >= MAX_GROUP || self.bytes >= MAX_GROUP_BYTES
    }
}

/// About how many bytes a change writes.
fn size(op: &Op) -> usize {
    match op {
        Op::Put(_, record) => {
            let pending = match &record.pending {
                Some(Pending::Write(content)) => content.sums.len(),
                _ => 0,
            };
            256 + 4 * (pending + record.committed.as_ref().map_or(0, |c| c.sums.len()))
        }
        _ => 32,
    }
}
