//! The index's writer thread: group commit, and when a freed block may be reused.
//!
//! See [`super::index`] for what it guarantees.

use std::sync::Arc;
use std::time::Duration;

use emberfs_proto::Result;
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
    Stop,
}

/// The writer thread.
pub(super) struct Writer {
    pub(super) index: Arc<Index>,
    pub(super) durability: Durability,
    pub(super) map: Arc<SpaceMap>,
    pub(super) space: Lane<SpaceJob>,
    /// Blocks whose records are gone, but not yet for good.
    pub(super) retired: Vec<Loc>,
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
    pub(super) fn run(mut self, jobs: &LaneEnd<WriteJob>) {
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

    fn work(&mut self, group: Group) {
        let power = self.durability == Durability::Power;
        self.write(group.lazy, false);
        let durable = !group.durable.is_empty();
        self.write(group.durable, power);
        if !power || durable {
            self.release();
        }
        if !group.flushes.is_empty() || group.stop {
            let result = self.flush();
            for reply in group.flushes {
                let _ = reply.send(result.clone());
            }
        }
    }

    fn write(&mut self, jobs: Vec<Job<WriteJob>>, sync: bool) {
        if jobs.is_empty() {
            return;
        }
        let writes = jobs.iter().filter_map(|job| match &job.work {
            WriteJob::Write(write) => Some(&write.ops),
            WriteJob::Flush(_) | WriteJob::Stop => None,
        });
        let result = self
            .fault()
            .and_then(|()| self.index.apply(writes.flatten(), sync));
        for job in jobs {
            let WriteJob::Write(write) = job.work else {
                continue;
            };
            if result.is_ok() {
                for &loc in &write.frees {
                    self.map.allocator.retire(loc);
                    self.retired.push(loc);
                }
            }
            (write.done)(result.clone());
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

    fn flush(&mut self) -> Result<()> {
        if self.durability == Durability::Power {
            self.index.flush()?;
        }
        self.release();
        Ok(())
    }

    /// What was retired before the last flush is free. Never after a failure: the records may
    /// come back.
    fn release(&mut self) {
        if self.map.health.writable().is_err() {
            return;
        }
        for loc in self.retired.drain(..) {
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
