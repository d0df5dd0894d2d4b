//! The space thread: grows block files, punches freed blocks out, watches the file system.
//!
//! Fresh extents are unwritten: the first O_DIRECT write into a block converts its extent, which
//! is a journal entry of the file system. (Small blocks are filled beforehand, see [`files::is_small`].) So the data of a write is on the device only after an
//! fdatasync of its block file, and in [`Durability::Power`](super::Durability::Power) there is one
//! before the index record, shared by all writes of the file that wait for it (see [`super::ring`]). Relying on
//! the flush of the index's log instead would need blocks that were written once before.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use emberfs_proto::{Error, ErrorCode, Result};
use tokio::sync::oneshot;

use super::alloc::{Allocator, Block};
use super::classes::Class;
use super::files::{self, BlockFiles};
use super::health::Health;
use super::lane::{Lane, LaneEnd, Received};
use super::types::Space;

/// Smallest and largest growth of a block file, bytes; in between, an eighth of the file.
const GROW_MIN_BYTES: u64 = 1 << 20;
const GROW_MAX_BYTES: u64 = 64 << 20;
/// The same of one with small blocks, which are written before they are given out.
const GROW_MAX_SMALL_BYTES: u64 = 8 << 20;
/// Free blocks of a class that stay allocated for reuse, bytes; the rest is punched out.
pub(super) const KEEP_IDLE_BYTES: u64 = 64 << 20;
/// Classes below this many bytes are punched only when the disk runs full: too many small holes.
const PUNCH_MIN_CAPACITY: u32 = 64 << 10;
/// Most bytes punched in one call, so that a waiting allocation is not held up long.
const PUNCH_MAX_BYTES: u64 = 1 << 30;
/// How old the free space that [`SpaceMap::space`] reports may be.
const REFRESH: Duration = Duration::from_secs(1);
/// A caller whose fresh blocks are snatched by others this often is told to come back.
const SUPPLY_ATTEMPTS: usize = 16;

/// What the space thread can be asked for.
pub(super) enum SpaceJob {
    /// A block of a class that has no free one.
    Allocate(Class, oneshot::Sender<Result<Block>>),
    /// Blocks of this class were freed.
    Trim(Class),
    /// End the thread.
    Stop,
}

/// Space of one disk: what the engine shares with the space thread.
pub(super) struct SpaceMap {
    pub(super) allocator: Arc<Allocator>,
    pub(super) files: Arc<BlockFiles>,
    pub(super) health: Arc<Health>,
    reserve: u64,
    available: AtomicU64,
}

impl SpaceMap {
    pub(super) fn new(
        allocator: Arc<Allocator>,
        files: Arc<BlockFiles>,
        health: Arc<Health>,
        reserve: u64,
    ) -> Self {
        Self {
            allocator,
            files,
            health,
            reserve,
            available: AtomicU64::new(0),
        }
    }

    /// Reads the free space of the file system; blocks.
    pub(super) fn refresh(&self) -> u64 {
        match self.files.available() {
            Ok(available) => self.available.store(available, Ordering::Relaxed),
            Err(error) => tracing::warn!(disk = %self.health.disk(), %error, "statvfs failed"),
        }
        self.available.load(Ordering::Relaxed)
    }

    /// Room for chunks, as of the last second.
    pub(super) fn space(&self) -> Space {
        let used = self.allocator.used_bytes();
        let file_system = self
            .available
            .load(Ordering::Relaxed)
            .saturating_sub(self.reserve);
        let free = file_system.saturating_add(self.allocator.idle_bytes());
        let free = free.min(self.allocator.limit().saturating_sub(used));
        Space {
            capacity: used + free,
            used,
            free,
        }
    }

    /// A block of the class, from the free ones or from the space thread.
    pub(super) async fn allocate(&self, lane: &Lane<SpaceJob>, class: Class) -> Result<Block> {
        if let Some(block) = self.allocator.allocate(class)? {
            return Ok(block);
        }
        let (reply, answer) = oneshot::channel();
        lane.send(SpaceJob::Allocate(class, reply)).await?;
        lane.answer(answer).await
    }

    /// Tells the space thread if enough was freed to be worth its while.
    pub(super) fn freed(&self, lane: &Lane<SpaceJob>, class: Class) {
        if class.capacity() >= PUNCH_MIN_CAPACITY && self.allocator.idle_of(class) > KEEP_IDLE_BYTES
        {
            lane.hint(SpaceJob::Trim(class));
        }
    }
}

/// The thread's body.
pub(super) fn run(map: &SpaceMap, jobs: &LaneEnd<SpaceJob>) {
    let mut tidy = Tidy {
        classes: Class::all().collect(),
        below: u32::MAX,
    };
    loop {
        let received = if tidy.classes.is_empty() {
            jobs.recv_timeout(REFRESH)
        } else {
            jobs.try_recv()
        };
        match received {
            Received::Nothing if tidy.classes.is_empty() => {
                map.refresh();
            }
            Received::Nothing => tidy.step(map),
            Received::Closed => return,
            Received::Job(job) => match job.work {
                SpaceJob::Stop => return,
                SpaceJob::Trim(class) => {
                    // Half, so that the next freed block does not start another round.
                    punch_idle(map, class, KEEP_IDLE_BYTES / 2);
                }
                SpaceJob::Allocate(class, reply) => {
                    // A caller that went away drops the block, which frees it.
                    let _ = reply.send(obtain(map, class));
                }
            },
        }
    }
}

/// After open nobody knows which free blocks still have disk space: gives all of it back, one
/// run per step, highest first.
struct Tidy {
    classes: Vec<Class>,
    below: u32,
}

impl Tidy {
    fn step(&mut self, map: &SpaceMap) {
        let Some(&class) = self.classes.last() else {
            return;
        };
        let run = map
            .allocator
            .holes(class, self.below, blocks_in(PUNCH_MAX_BYTES, class));
        let Some(run) = run else {
            self.classes.pop();
            self.below = u32::MAX;
            map.refresh();
            return;
        };
        self.below = run.start;
        if let Err(error) = map.files.punch(class, run) {
            tracing::warn!(disk = %map.health.disk(), %error, "cannot give freed space back");
            self.classes.clear();
        }
    }
}

fn blocks_in(bytes: u64, class: Class) -> u32 {
    (bytes / u64::from(class.capacity())).max(1) as u32
}

fn obtain(map: &SpaceMap, class: Class) -> Result<Block> {
    for _ in 0..SUPPLY_ATTEMPTS {
        if let Some(block) = map.allocator.allocate(class)? {
            return Ok(block);
        }
        supply(map, class)?;
    }
    let what = format!(
        "disk {}: blocks are taken faster than allocated",
        map.health.disk()
    );
    Err(Error::new(ErrorCode::Busy, what).retry_after_ms(10))
}

/// Makes free backed blocks of a class: from its holes, else by growing its file.
fn supply(map: &SpaceMap, class: Class) -> Result<()> {
    let file_bytes = u64::from(map.allocator.total(class)) * u64::from(class.capacity());
    let most = if files::is_small(class) {
        GROW_MAX_SMALL_BYTES
    } else {
        GROW_MAX_BYTES
    };
    let many = blocks_in((file_bytes / 8).clamp(GROW_MIN_BYTES, most), class);
    let result = [many, 1]
        .into_iter()
        .find_map(|n| back(map, class, n).transpose());
    let result = match result {
        Some(result) => result,
        None => {
            // Other classes may sit on free blocks.
            Class::all().for_each(|other| punch_idle(map, other, 0));
            match back(map, class, 1) {
                Ok(Some(())) => Ok(()),
                Ok(None) => Err(full(map)),
                Err(error) => Err(error),
            }
        }
    };
    map.refresh();
    result
}

fn full(map: &SpaceMap) -> Error {
    let what = format!(
        "disk {} is full ({} bytes free, {} reserved): add disks or delete",
        map.health.disk(),
        map.available.load(Ordering::Relaxed),
        map.reserve
    );
    Error::new(ErrorCode::NoSpace, what)
}

/// `None`: not that many fit.
fn back(map: &SpaceMap, class: Class, blocks: u32) -> Result<Option<()>> {
    let bytes = u64::from(blocks) * u64::from(class.capacity());
    if map.refresh() < bytes.saturating_add(map.reserve) {
        return Ok(None);
    }
    let holes = map.allocator.holes(class, u32::MAX, blocks);
    let run = match &holes {
        Some(run) => run.clone(),
        None => {
            let total = map.allocator.total(class);
            let Some(end) = total.checked_add(blocks) else {
                return Ok(None);
            };
            total..end
        }
    };
    match map.files.back(class, run.clone()) {
        Ok(()) if holes.is_some() => map.allocator.backed(class, run),
        Ok(()) => map.allocator.grown(class, run),
        Err(error) => {
            let error = map.health.write_failed("a block file", &error);
            return if error.code == ErrorCode::NoSpace {
                Ok(None)
            } else {
                Err(error)
            };
        }
    }
    Ok(Some(()))
}

/// Punches free blocks out until only `keep` bytes of them are left.
fn punch_idle(map: &SpaceMap, class: Class, keep: u64) {
    while let Some(run) = map
        .allocator
        .claim_idle(class, keep, blocks_in(PUNCH_MAX_BYTES, class))
    {
        if let Err(error) = punch(map, class, run) {
            tracing::warn!(disk = %map.health.disk(), %error, "cannot give freed space back");
            break;
        }
    }
    map.refresh();
}

fn punch(map: &SpaceMap, class: Class, run: Range<u32>) -> std::io::Result<()> {
    let result = map.files.punch(class, run.clone());
    if result.is_ok() {
        map.allocator.punched(class, run);
    } else {
        map.allocator.grown(class, run);
    }
    result
}
