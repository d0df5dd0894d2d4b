//! The background scrub: reads and verifies every committed chunk of a disk, by schedule, and repairs
//! what it finds.
//!
//! One task per disk, one chunk at a time, at the pace that the cluster's settings allow, so it
//! takes no more of the disk than a single slow reader would. Whatever changes meanwhile, a chunk is
//! verified against the record it has at that moment. Progress is saved now and then and when
//! the task ends: a restart goes on from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use emberfs_proto::ids::{ChunkKey, DiskId};
use emberfs_proto::{Error, ErrorCode, Result};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::care::{Care, Pass, State, now_ms};
use super::repair::Cause;
use super::{Node, OpenDisk, TargetHost};
use crate::engine::ReadVersion;

/// Chunks per page of a listing.
const PAGE: usize = 256;
/// Progress that a crash may lose.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// How often chunks that could not be repaired are tried again, and how many at a time.
const RETRY_EVERY: Duration = Duration::from_mins(1);
const RETRY_AT_ONCE: usize = 16;

/// Scrubs all disks of a node until `stop`.
pub(crate) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    for disk in &node.disks {
        let scrubber = Scrubber::new(node.clone(), disk, stop.clone());
        tasks.spawn(scrubber.run());
    }
    while let Some(task) = tasks.join_next().await {
        if let Err(error) = task {
            tracing::error!(%error, "a scrub task failed");
        }
    }
}

struct Scrubber {
    node: Arc<Node>,
    disk: DiskId,
    path: std::path::PathBuf,
    engine: crate::engine::Engine,
    care: Arc<Care>,
    stop: CancellationToken,
    saved: Instant,
}

impl Scrubber {
    fn new(node: Arc<Node>, disk: &OpenDisk, stop: CancellationToken) -> Self {
        let care = node.repairs.care(disk.id);
        Self {
            node,
            disk: disk.id,
            path: disk.path.clone(),
            engine: disk.engine.clone(),
            care,
            stop,
            saved: Instant::now(),
        }
    }

    async fn run(mut self) {
        let path = self.path.clone();
        match tokio::task::spawn_blocking(move || State::read(&path)).await {
            Ok(state) => self.care.load(state),
            Err(error) => return tracing::error!(%error, "cannot read the scrub's state"),
        }
        let mut retried = Instant::now();
        while !self.stop.is_cancelled() {
            // Before the first map nothing is known of the targets.
            if !self.hosts().is_empty()
                && let Some(pass) = self
                    .care
                    .begin_if_due(self.node.scrub_interval(), self.engine.space().used)
            {
                self.pass(&pass).await;
            }
            if retried.elapsed() >= RETRY_EVERY {
                retried = Instant::now();
                self.retry_lost().await;
            }
            self.save().await;
            let next = self.care.next_start(self.node.scrub_interval(), now_ms());
            let until = next.map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
            let idle = if self.hosts().is_empty() {
                RETRY_EVERY
            } else {
                until.unwrap_or(RETRY_EVERY).min(RETRY_EVERY)
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.care.wake.notified() => {}
                () = tokio::time::sleep(idle) => {}
            }
        }
        self.save().await;
    }

    /// Goes on with the pass that has begun.
    async fn pass(&mut self, pass: &Pass) {
        let resume = pass.after();
        tracing::info!(disk = %self.path.display(), ?resume, "scrub begins");
        for host in self.hosts() {
            let after = match resume {
                Some((target, _)) if host.id() < target => continue,
                Some((target, key)) if host.id() == target => Some(key),
                _ => None,
            };
            if let Err(error) = self.target(&host, after).await {
                tracing::warn!(target = %host.id(), %error, "the scrub leaves a target out");
            }
            if self.stop.is_cancelled() {
                return;
            }
        }
        // What was lost may have been removed or written anew since.
        self.retry_lost().await;
        self.care.finish();
        self.save().await;
        tracing::info!(disk = %self.path.display(), "scrub complete");
    }

    async fn target(&mut self, host: &Arc<TargetHost>, mut after: Option<ChunkKey>) -> Result<()> {
        loop {
            let page = match self.engine.list(host.id(), after, PAGE).await {
                // Dropped meanwhile.
                Err(error) if error.code == ErrorCode::NotServing => return Ok(()),
                page => page?,
            };
            let end = page.len() < PAGE;
            for (key, meta) in page {
                if self.stop.is_cancelled() {
                    return Ok(());
                }
                let begun = Instant::now();
                let mut found = None;
                let bytes = u64::from(meta.committed_len);
                if bytes > 0 {
                    found = self.chunk(host, key).await;
                }
                self.care.advance(host.id(), key, bytes, found);
                after = Some(key);
                self.pace(begun, bytes).await;
                if self.saved.elapsed() >= SAVE_EVERY {
                    self.save().await;
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    /// `None`: sound; whether damage was repaired.
    async fn chunk(&self, host: &TargetHost, key: ChunkKey) -> Option<bool> {
        let repair = self
            .node
            .repair(host, key, ReadVersion::Committed, Cause::Scrub);
        let outcome = tokio::select! {
            outcome = repair => outcome,
            () = self.stop.cancelled() => return None,
        };
        match outcome {
            Ok(repaired) => (repaired.pages > 0).then_some(true),
            Err(Error {
                code: ErrorCode::ChecksumMismatch,
                ..
            }) => Some(false),
            Err(error) => {
                tracing::debug!(chunk = %key, %error, "not verified in this pass");
                None
            }
        }
    }

    /// Waits until a chunk has taken as long as the settings of that moment ask.
    async fn pace(&self, begun: Instant, bytes: u64) {
        loop {
            let rate = self.node.scrub_bytes_per_second();
            if rate == 0 {
                return tokio::task::yield_now().await;
            }
            let due = begun + Duration::from_secs_f64(bytes as f64 / rate as f64);
            if due <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => return,
                () = self.stop.cancelled() => return,
                // The settings may have changed.
                () = self.care.wake.notified() => {}
            }
        }
    }

    /// A replica with the right bytes may have come back.
    async fn retry_lost(&self) {
        for lost in self.care.all_lost().into_iter().take(RETRY_AT_ONCE) {
            match self.node.host(lost.target()) {
                Ok(host) => {
                    self.chunk(&host, lost.key()).await;
                }
                Err(_) => self.care.sound(lost.target(), lost.key()),
            }
        }
    }

    /// The targets on this disk, in order.
    fn hosts(&self) -> Vec<Arc<TargetHost>> {
        let map = self.node.map();
        let mut hosts = self.node.hosts();
        hosts.retain(|host| {
            map.targets
                .get(&host.id())
                .is_some_and(|t| t.disk == self.disk)
        });
        hosts.sort_by_key(|host| host.id());
        hosts
    }

    async fn save(&mut self) {
        self.saved = Instant::now();
        let Some(state) = self.care.take_unsaved() else {
            return;
        };
        let path = self.path.clone();
        match tokio::task::spawn_blocking(move || state.write(&path)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the scrub's progress is not saved"),
            Err(error) => tracing::error!(%error, "the scrub's progress is not saved"),
        }
    }
}
