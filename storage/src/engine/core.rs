//! What all operations of an engine share: its threads' lanes, the cache, the targets.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use emberfs_proto::ids::{ChunkKey, TargetId};
use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{
    OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock as AsyncRwLock, oneshot,
};

use super::alloc::Block;
use super::cache::{Cache, Entry, Slot};
use super::health::Health;
use super::index::{self, Index, Op, ReadJob};
use super::lane::Lane;
use super::record::Record;
use super::ring::Ring;
use super::space::{SpaceJob, SpaceMap};
use super::types::Durability;
use super::writer::{Retired, Write, WriteJob};

/// The engine behind its handle.
pub(super) struct Core {
    pub(super) durability: Durability,
    pub(super) health: Arc<Health>,
    pub(super) map: Arc<SpaceMap>,
    pub(super) cache: Cache,
    pub(super) ring: Ring,
    pub(super) space: Lane<SpaceJob>,
    pub(super) writer: Lane<WriteJob>,
    pub(super) reader: Lane<ReadJob>,
    /// For writes that wait for nothing; `None` once the engine is closed.
    pub(super) index: RwLock<Option<Arc<Index>>>,
    pub(super) retired: Arc<Retired>,
    #[cfg(test)]
    pub(super) faults: Arc<super::faults::Faults>,
    pub(super) targets: RwLock<HashMap<TargetId, Arc<AsyncRwLock<Alive>>>>,
    pub(super) threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Whether a target is still there; read-locked by each operation on it, write-locked by its removal.
pub(super) struct Alive(pub(super) bool);

/// A chunk in use: its target cannot be dropped nor its entry evicted meanwhile.
pub(super) struct Touch {
    pub(super) target: TargetId,
    pub(super) chunk: ChunkKey,
    pub(super) entry: Arc<Entry>,
    _alive: OwnedRwLockReadGuard<Alive>,
}

/// The right to change a chunk. I/O to a committed block keeps it until the kernel has answered, even
/// if the caller goes away: a late write must not land on top of the next one's bytes.
pub(super) type Gate = Arc<OwnedMutexGuard<()>>;

/// A chunk that nobody else may change meanwhile.
pub(super) struct Hold {
    pub(super) touch: Touch,
    pub(super) record: Option<Arc<Record>>,
    pub(super) gate: Gate,
}

impl std::fmt::Display for Touch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "target {} chunk {}", self.target, self.chunk)
    }
}

impl Drop for Core {
    /// Waits for the threads: one that still closed the index while the process exits would find the
    /// library's own globals gone.
    fn drop(&mut self) {
        self.close();
        let me = std::thread::current().id();
        for thread in self.threads.get_mut().drain(..) {
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a thread of the disk engine panicked");
            }
        }
    }
}

impl Core {
    /// Tells the threads to finish what is queued and end. The writer's last act is a flush.
    pub(super) fn close(&self) {
        *self.index.write() = None;
        self.writer.close(WriteJob::Stop);
        self.reader.close(ReadJob::Stop);
        self.space.close(SpaceJob::Stop);
        self.ring.close();
    }

    fn lock_of(&self, target: TargetId) -> Result<Arc<AsyncRwLock<Alive>>> {
        let lock = self.targets.read().get(&target).cloned();
        lock.ok_or_else(|| self.no_target(target))
    }

    fn no_target(&self, target: TargetId) -> Error {
        let what = format!("disk {} holds no target {target}", self.health.disk());
        Error::new(ErrorCode::NotServing, what)
    }

    /// Keeps a target from being dropped.
    pub(super) async fn enter(&self, target: TargetId) -> Result<OwnedRwLockReadGuard<Alive>> {
        let alive = self.lock_of(target)?.read_owned().await;
        if alive.0 {
            Ok(alive)
        } else {
            Err(self.no_target(target))
        }
    }

    /// Waits until nobody uses a target, and keeps everybody out.
    pub(super) async fn enter_alone(
        &self,
        target: TargetId,
    ) -> Result<OwnedRwLockWriteGuard<Alive>> {
        let alive = self.lock_of(target)?.write_owned().await;
        if alive.0 {
            Ok(alive)
        } else {
            Err(self.no_target(target))
        }
    }

    /// A chunk, to be read.
    pub(super) async fn touch(&self, target: TargetId, chunk: ChunkKey) -> Result<Touch> {
        let alive = self.enter(target).await?;
        let entry = self.cache.entry(target, chunk);
        Ok(Touch {
            target,
            chunk,
            entry,
            _alive: alive,
        })
    }

    /// A chunk, to be changed.
    pub(super) async fn hold(&self, target: TargetId, chunk: ChunkKey) -> Result<Hold> {
        let touch = self.touch(target, chunk).await?;
        let gate = Arc::clone(&touch.entry.gate).lock_owned().await;
        let record = self.load(&touch, &gate).await?;
        Ok(Hold {
            touch,
            record,
            gate: Arc::new(gate),
        })
    }

    /// Makes the entry's slot known, if it is not; `None` when there is no such chunk.
    pub(super) async fn record(&self, touch: &Touch) -> Result<Option<Arc<Record>>> {
        if let Slot::Known(record) = &*touch.entry.slot.lock() {
            return Ok(record.clone());
        }
        let gate = Arc::clone(&touch.entry.gate).lock_owned().await;
        self.load(touch, &gate).await
    }

    async fn load(&self, touch: &Touch, _: &OwnedMutexGuard<()>) -> Result<Option<Arc<Record>>> {
        if let Slot::Known(record) = &*touch.entry.slot.lock() {
            return Ok(record.clone());
        }
        let key = index::key(touch.target, touch.chunk);
        let at_once = self.index.read().as_ref().and_then(|i| i.get_at_once(&key));
        let record = match at_once {
            Some(record) => record?,
            None => self.query(move |index| index.get(&key)).await?,
        };
        let record = record.map(Arc::new);
        *touch.entry.slot.lock() = Slot::Known(record.clone());
        Ok(record)
    }

    /// Asks the index, on its reader thread.
    pub(super) async fn query<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&Index) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let (reply, answer) = oneshot::channel();
        let query = Box::new(move |index: &Index| {
            // A caller that went away needs no answer.
            let _ = reply.send(ask(index));
        });
        self.reader.send(ReadJob::Query(query)).await?;
        self.reader.answer(answer).await
    }

    /// Writes changes that concern no chunk in the cache.
    pub(super) async fn change_index(
        &self,
        ops: Vec<Op>,
        frees: Vec<super::classes::Loc>,
    ) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let done = Box::new(move |result| {
            let _ = reply.send(result);
        });
        self.writer
            .send(WriteJob::Write(Write {
                ops,
                durable: true,
                frees,
                done,
            }))
            .await?;
        self.writer.answer(answer).await
    }

    /// Flushes the index, so that blocks whose records are gone are free.
    pub(super) async fn flush_index(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(WriteJob::Flush(reply)).await?;
        self.writer.answer(answer).await
    }

    /// The chunk's record becomes `new`: in the index, in the cache, and who owns which block,
    /// together, even if the caller goes away. `fresh` pins the block that `new` brings.
    pub(super) async fn set_record(
        &self,
        hold: Hold,
        new: Option<Record>,
        durable: bool,
        fresh: Option<Arc<Block>>,
    ) -> Result<Option<Arc<Record>>> {
        let blocks = |r: Option<&Record>| r.map_or(Vec::new(), |r| r.blocks().collect());
        let (before, after) = (blocks(hold.record.as_deref()), blocks(new.as_ref()));
        let gains: Vec<_> = after
            .iter()
            .filter(|b| !before.contains(b))
            .copied()
            .collect();
        let frees: Vec<_> = before
            .iter()
            .filter(|b| !after.contains(b))
            .copied()
            .collect();
        let key = index::key(hold.touch.target, hold.touch.chunk);
        let op = new
            .clone()
            .map_or(Op::Delete(key), |record| Op::Put(key, Box::new(record)));
        let (reply, answer) = oneshot::channel();
        let allocator = Arc::clone(&self.map.allocator);
        let done = move |result: Result<()>| {
            // After a failure the record may be there all the same: its blocks stay taken.
            for loc in gains {
                allocator.own(loc);
            }
            let result = result.map(|()| {
                let record = new.map(Arc::new);
                *hold.touch.entry.slot.lock() = Slot::Known(record.clone());
                record
            });
            drop((fresh, hold));
            let _ = reply.send(result);
        };
        if !durable && let Some(written) = self.write_at_once(&op) {
            let written_well = written.is_ok();
            // Before blocks may be freed: readers find them by the record in the cache.
            done(written);
            if written_well && self.retired.add(&self.map, &frees) {
                self.writer.hint(WriteJob::Retired);
            }
        } else {
            let write = Write {
                ops: vec![op],
                durable,
                frees,
                done: Box::new(done),
            };
            self.writer.send(WriteJob::Write(write)).await?;
        }
        self.writer.answer(answer).await
    }

    /// Writes a change on this thread; `None`: it would have to wait.
    fn write_at_once(&self, op: &Op) -> Option<Result<()>> {
        #[cfg(test)]
        if self.faults.index.load(std::sync::atomic::Ordering::SeqCst) != 0 {
            return None;
        }
        let index = self.index.read();
        match index.as_ref()?.apply_at_once(op) {
            Ok(written) => written.then_some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    }
}
