//! How fast a node brings returning replicas up to date, all its passes together.
//!
//! Two limits, both settings of the cluster that take effect at once, also for a running pass:
//! - a *rate*: a token bucket over the bytes that this node sends for resync;
//! - a *share*: while clients use the node, one chunk moves at a time, and after each the node rests so
//!   long that moving has taken no more than that share of the time. An idle node does not rest.
//!
//! Neither can starve a pass: a rest is bounded, a transfer that is stuck is not waited for, the bucket lets a chunk go as soon as it holds one byte
//! (what exceeds it is debt), and whoever waits longest is next, whichever pass it belongs to.
//!
//! Memory is bounded as well: so many chunks and so many bytes of the whole node are on their way.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use emberfs_proto::cluster::Settings;
use emberfs_proto::layout::MAX_CHUNK_SIZE;
use emberfs_proto::{Error, ErrorCode, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Passes of one node at the same time; others wait for their turn. A pass costs two pages of a listing.
const MAX_PASSES: usize = 16;
/// Bytes of chunks on their way, all passes together; at least one chunk.
const MAX_BYTES: u32 = 2 * MAX_CHUNK_SIZE;
/// Granularity in which [`MAX_BYTES`] is counted.
const BYTES_UNIT: u32 = 4096;
/// Clients count as active while a request is in progress and for so long after it.
const FOREGROUND_WINDOW: Duration = Duration::from_millis(250);
/// Longest rest after a chunk, and longest wait for another that is on its way: what the share may cost when
/// a disk is slow.
const MAX_REST: Duration = Duration::from_secs(1);
/// The bucket holds what flows in within this time.
const BURST: Duration = Duration::from_millis(250);
/// Longest wait until the limits are looked at again without an event.
const LOOK_AGAIN: Duration = FOREGROUND_WINDOW;

/// The pace of one node.
pub(super) struct Pacer {
    passes: Semaphore,
    chunks: Semaphore,
    bytes: Semaphore,
    /// Held by the transfer that is next: the others queue up behind it in order.
    turn: tokio::sync::Mutex<()>,
    limits: Mutex<Limits>,
    /// A transfer has ended or a setting has changed.
    changed: Notify,
    start: Instant,
    /// Requests of clients in progress.
    foreground: AtomicUsize,
    /// Milliseconds after `start` until which clients count as active.
    foreground_until: AtomicU64,
}

/// A client's request in progress.
pub(super) struct Foreground<'a>(&'a Pacer);

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        let until = self.0.start.elapsed() + FOREGROUND_WINDOW;
        self.0
            .foreground_until
            .fetch_max(until.as_millis() as u64, Ordering::Relaxed);
        self.0.foreground.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A chunk on its way. Dropping it ends the transfer.
pub(super) struct Transfer<'a> {
    pacer: &'a Pacer,
    started: Instant,
    bytes: u32,
    used: bool,
    _permits: (SemaphorePermit<'a>, SemaphorePermit<'a>),
}

impl Pacer {
    /// `parallel`: chunks of all passes on their way at the same time.
    pub(super) fn new(parallel: usize) -> Self {
        let now = Instant::now();
        Self {
            passes: Semaphore::new(MAX_PASSES),
            chunks: Semaphore::new(parallel.max(1)),
            bytes: Semaphore::new((MAX_BYTES / BYTES_UNIT) as usize),
            turn: tokio::sync::Mutex::default(),
            limits: Mutex::new(Limits::new(now)),
            changed: Notify::new(),
            start: now,
            foreground: AtomicUsize::new(0),
            foreground_until: AtomicU64::new(0),
        }
    }

    /// The cluster's settings have changed, perhaps.
    pub(super) fn configure(&self, settings: &Settings) {
        let mut limits = self.limits.lock();
        limits.configure(
            settings.resync_bytes_per_second,
            settings.resync_share_percent,
            Instant::now(),
        );
        self.changed.notify_one();
    }

    /// A client's request has come; it is in progress until the answer is dropped.
    pub(super) fn foreground(&self) -> Foreground<'_> {
        self.foreground.fetch_add(1, Ordering::Relaxed);
        Foreground(self)
    }

    fn clients_active(&self, now: Instant) -> bool {
        let until = self.foreground_until.load(Ordering::Relaxed);
        self.foreground.load(Ordering::Relaxed) > 0
            || until > now.duration_since(self.start).as_millis() as u64
    }

    /// The right to run a pass, in turn.
    pub(super) async fn pass(&self) -> Result<SemaphorePermit<'_>> {
        self.passes.acquire().await.map_err(closed)
    }

    /// Waits until a chunk of `bytes` may be sent.
    pub(super) async fn admit(&self, bytes: u32) -> Result<Transfer<'_>> {
        let chunk = self.chunks.acquire().await.map_err(closed)?;
        let units = bytes.min(MAX_BYTES).div_ceil(BYTES_UNIT).max(1);
        let room = self.bytes.acquire_many(units).await.map_err(closed)?;
        let _turn = self.turn.lock().await;
        loop {
            let now = Instant::now();
            let active = self.clients_active(now);
            let Some(wait) = self.limits.lock().admit(now, bytes, active) else {
                return Ok(Transfer {
                    pacer: self,
                    started: now,
                    bytes,
                    used: true,
                    _permits: (chunk, room),
                });
            };
            // Whatever ends the wait, the limits decide again.
            let _ = tokio::time::timeout(wait.min(LOOK_AGAIN), self.changed.notified()).await;
        }
    }
}

/// The semaphores are never closed; should they be, a pass must fail and not leave a chunk out.
fn closed(_: tokio::sync::AcquireError) -> Error {
    Error::new(ErrorCode::Unavailable, "resync has ended on this node")
}

impl Transfer<'_> {
    /// The chunk need not be sent after all: it costs nothing.
    pub(super) fn give_back(mut self) {
        self.used = false;
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut limits = self.pacer.limits.lock();
        if self.used {
            limits.ended(now, now - self.started);
        } else {
            limits.given_back(self.bytes);
        }
        self.pacer.changed.notify_one();
    }
}

/// The arithmetic of both limits; the time is passed in.
struct Limits {
    /// 0: no limit.
    bytes_per_second: u64,
    share_percent: u32,
    /// Bytes that may be sent now; below zero: debt.
    level: f64,
    filled: Instant,
    in_flight: usize,
    /// When the last transfer began.
    begun: Instant,
    rest_until: Instant,
}

impl Limits {
    fn new(now: Instant) -> Self {
        let settings = Settings::default();
        Self {
            bytes_per_second: settings.resync_bytes_per_second,
            share_percent: settings.resync_share_percent,
            level: 0.0,
            filled: now,
            in_flight: 0,
            begun: now,
            rest_until: now,
        }
    }

    fn configure(&mut self, bytes_per_second: u64, share_percent: u32, now: Instant) {
        self.fill(now);
        self.bytes_per_second = bytes_per_second;
        self.share_percent = share_percent.clamp(1, 100);
        if self.share_percent == 100 {
            self.rest_until = now;
        }
    }

    fn fill(&mut self, now: Instant) {
        let rate = self.bytes_per_second as f64;
        let gained = rate * now.duration_since(self.filled).as_secs_f64();
        self.level = (self.level + gained).min((rate * BURST.as_secs_f64()).max(1.0));
        self.filled = now;
    }

    /// `None`: the transfer begins. Otherwise how long to wait before asking again.
    fn admit(&mut self, now: Instant, bytes: u32, clients_active: bool) -> Option<Duration> {
        if clients_active && self.share_percent < 100 {
            // One that takes longer is stuck, at its successor or behind a client's write: others go on.
            let turn = self.begun + MAX_REST;
            if self.in_flight > 0 && now < turn {
                return Some(turn - now);
            }
            if now < self.rest_until {
                return Some(self.rest_until - now);
            }
        }
        if self.bytes_per_second > 0 {
            self.fill(now);
            if self.level < 1.0 {
                let missing = (1.0 - self.level) / self.bytes_per_second as f64;
                // A debt may last longer than a duration can say.
                let wait = Duration::try_from_secs_f64(missing).unwrap_or(Duration::MAX);
                return Some(wait.max(Duration::from_millis(1)));
            }
            self.level -= f64::from(bytes);
        }
        self.in_flight += 1;
        self.begun = now;
        None
    }

    fn ended(&mut self, now: Instant, took: Duration) {
        self.in_flight -= 1;
        let share = self.share_percent;
        let rest = took.saturating_mul(100 - share) / share;
        self.rest_until = self.rest_until.max(now + rest.min(MAX_REST));
    }

    fn given_back(&mut self, bytes: u32) {
        self.in_flight -= 1;
        if self.bytes_per_second > 0 {
            self.level += f64::from(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
