//! Repairs damaged chunks from other replicas.
//!
//! What is damaged, and what the right bytes are, this target's own record tells (see the engine);
//! so any target of the chain may give them, SERVING or not, page by page: two replicas that are damaged
//! in different places repair each other. No lock is held while the network is asked; a write that
//! comes first makes the repair void, and what it left damaged is looked at again.
//!
//! Who comes upon damage: a client's read (the client goes on with another replica, the repair is made
//! behind its back), a write that keeps a part of a damaged page and a resync that would copy it (they
//! wait for the repair), the scrub, and `fsck --repair`. A chunk is repaired once at a time, and
//! a node repairs [`LANES`] chunks at most.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use emberfs_proto::checksum::crc32;
use emberfs_proto::cluster::{ClusterMap, PublicState};
use emberfs_proto::ids::{ChunkKey, ChunkVersion, DiskId, TargetId};
use emberfs_proto::wire::{Call, Channel, Landed, Landing, Opcode};
use emberfs_proto::{Error, ErrorCode, Result, pb};
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use super::care::{Care, now_ms};
use super::{Node, TargetHost};
use crate::engine::{BadPage, DiskState, ReadVersion};

/// Chunks that are repaired at the same time.
const LANES: usize = 4;
/// Repairs for reads that may wait for a lane; the scrub finds what is turned away.
const WAITING: usize = 64;
/// Findings that are kept.
const MAX_FINDINGS: usize = 64;
/// Bytes fetched by one call at most (a single page may be larger).
const FETCH_BYTES: u32 = 4 << 20;
/// Longest wait for one call.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// A chunk that is written all the time is left to the next who comes upon it.
const ATTEMPTS: usize = 4;

/// Who came upon the damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Read,
    Write,
    Resync,
    Scrub,
    Fsck,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Resync => "resync",
            Self::Scrub => "scrub",
            Self::Fsck => "fsck",
        }
    }

    /// These come again and again for the same chunk.
    fn is_frequent(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::Resync)
    }
}

/// What a repair did; no pages: nothing was damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Repaired {
    pub(super) pages: usize,
    pub(super) sources: Vec<TargetId>,
}

/// State of all repairs of a node.
pub(super) struct Repairs {
    /// One repair at a time in each; a chunk always takes the same.
    lanes: [AsyncMutex<()>; LANES],
    waiting: Arc<Semaphore>,
    findings: Mutex<VecDeque<pb::Finding>>,
    care: Mutex<HashMap<DiskId, Arc<Care>>>,
}

impl Default for Repairs {
    fn default() -> Self {
        Self {
            lanes: std::array::from_fn(|_| AsyncMutex::default()),
            waiting: Arc::new(Semaphore::new(WAITING)),
            findings: Mutex::default(),
            care: Mutex::default(),
        }
    }
}

impl Repairs {
    /// What is known of a disk.
    pub(super) fn care(&self, disk: DiskId) -> Arc<Care> {
        self.care.lock().entry(disk).or_default().clone()
    }

    /// Wakes the scrub of every disk.
    pub(super) fn wake(&self) {
        self.care.lock().values().for_each(|c| c.wake.notify_one());
    }

    /// The newest last.
    pub(super) fn findings(&self) -> Vec<pb::Finding> {
        self.findings.lock().iter().cloned().collect()
    }

    fn record(&self, finding: pb::Finding) {
        let mut findings = self.findings.lock();
        if findings.len() == MAX_FINDINGS {
            findings.pop_front();
        }
        findings.push_back(finding);
    }
}

/// Whether an error of the engine means that stored bytes are damaged, and not that the disk is gone.
pub(super) fn is_damage(host: &TargetHost, error: &Error) -> bool {
    match error.code {
        ErrorCode::ChecksumMismatch => true,
        ErrorCode::DiskError => host.engine().health().state == DiskState::Healthy,
        _ => false,
    }
}

impl Node {
    /// Verifies one version of a chunk and repairs it. The error says why damage stays.
    pub(super) async fn repair(
        &self,
        host: &TargetHost,
        key: ChunkKey,
        which: ReadVersion,
        cause: Cause,
    ) -> Result<Repaired> {
        let target = host.id();
        let care = self.care_of(target);
        let mut hasher = DefaultHasher::new();
        (target, key).hash(&mut hasher);
        let _lane = self.repairs.lanes[hasher.finish() as usize % LANES]
            .lock()
            .await;
        if cause.is_frequent()
            && let Some(why) = care.just_lost(target, key)
        {
            return Err(Error::new(ErrorCode::ChecksumMismatch, why));
        }
        for _ in 0..ATTEMPTS {
            let damage = match host.engine().damage(target, key, which).await {
                Err(error) if is_gone(error.code) => {
                    care.sound(target, key);
                    return Ok(Repaired::default());
                }
                damage => damage?,
            };
            if damage.pages.is_empty() {
                care.sound(target, key);
                return Ok(Repaired::default());
            }
            let found = self
                .gather(target, key, damage.version, &damage.pages)
                .await;
            let mut left = damage.pages.len() - found.pages.len();
            let mut why = found.why;
            if !found.pages.is_empty() {
                let repair = host
                    .engine()
                    .repair(target, key, damage.version, &found.pages);
                match repair.await {
                    Ok(true) => {}
                    // A write came first.
                    Ok(false) => continue,
                    Err(error) => {
                        left = damage.pages.len();
                        why.push(error.message);
                    }
                }
            }
            let mut finding = self.finding(target, key, damage.pages.len(), cause);
            finding.sources = found.sources.iter().map(|source| source.0).collect();
            if left == 0 {
                tracing::warn!(%target, chunk = %key, pages = damage.pages.len(), sources = ?found.sources,
                    found_by = cause.name(), "damaged chunk repaired");
                care.repaired(target, key);
                self.repairs.record(finding);
                return Ok(Repaired {
                    pages: damage.pages.len(),
                    sources: found.sources,
                });
            }
            let why = format!(
                "chunk {key} on target {target} of node {}: {left} damaged pages cannot be repaired: {}; restore the file (`emberfs fsck` names it) or bring the other replicas back",
                self.id,
                if why.is_empty() {
                    "there is no other replica".to_owned()
                } else {
                    why.join("; ")
                }
            );
            tracing::error!("{why}");
            if care.just_lost(target, key).is_none() {
                finding.failure.clone_from(&why);
                self.repairs.record(finding);
            }
            care.lost(target, key, &why);
            return Err(Error::new(ErrorCode::ChecksumMismatch, why));
        }
        let what = format!("chunk {key} on target {target} changes too fast to be repaired");
        Err(Error::new(ErrorCode::Busy, what).retry_after_ms(10))
    }

    /// Repairs a chunk behind the back of the read that came upon it.
    pub(super) fn repair_later(self: &Arc<Self>, host: &Arc<TargetHost>, key: ChunkKey) {
        let Ok(place) = self.repairs.waiting.clone().try_acquire_owned() else {
            return;
        };
        let (node, host) = (self.clone(), host.clone());
        tokio::spawn(async move {
            let _place = place;
            // The outcome is recorded and logged.
            let _ = node
                .repair(&host, key, ReadVersion::Committed, Cause::Read)
                .await;
        });
    }

    /// What is known of the disk of a target.
    fn care_of(&self, target: TargetId) -> Arc<Care> {
        let disk = self.map().targets.get(&target).map(|t| t.disk);
        self.repairs.care(disk.unwrap_or_default())
    }

    fn finding(&self, target: TargetId, key: ChunkKey, pages: usize, cause: Cause) -> pb::Finding {
        let map = self.map();
        let of = map.targets.get(&target);
        let disk = of.and_then(|t| self.disks.iter().find(|disk| disk.id == t.disk));
        pb::Finding {
            when_ms: now_ms(),
            path: disk.map_or_else(String::new, |disk| disk.path.display().to_string()),
            target: target.0,
            chain: of.map_or(0, |t| t.chain.0),
            key: key.encode().to_vec().into(),
            pages: pages as u32,
            found_by: cause.name().to_owned(),
            sources: Vec::new(),
            failure: String::new(),
        }
    }

    /// Asks the other targets of the chain for pages until each has been found.
    async fn gather(
        &self,
        target: TargetId,
        key: ChunkKey,
        version: ChunkVersion,
        bad: &[BadPage],
    ) -> Gathered {
        let mut found = Gathered::default();
        let mut left: Vec<&BadPage> = bad.iter().collect();
        for (source, addr) in sources(&self.map(), target) {
            let mut still = Vec::new();
            for run in runs(&left) {
                let pages = &left[run];
                match self.fetch(source, &addr, key, version, pages).await {
                    Ok(bytes) => {
                        let start = pages[0].range.start;
                        for &page in pages {
                            let at = (page.range.start - start) as usize
                                ..(page.range.end - start) as usize;
                            match bytes.get(at) {
                                Some(data) if crc32(data) == page.checksum => {
                                    let data = bytes.slice_ref(data);
                                    found.pages.push((page.range.start, data));
                                    if !found.sources.contains(&source) {
                                        found.sources.push(source);
                                    }
                                }
                                _ => {
                                    found.note(source, "its bytes do not match either");
                                    still.push(page);
                                }
                            }
                        }
                    }
                    Err(error) => {
                        found.note(source, &error.message);
                        still.extend(pages);
                    }
                }
            }
            left = still;
            if left.is_empty() {
                break;
            }
        }
        found
    }

    async fn fetch(
        &self,
        source: TargetId,
        addr: &str,
        key: ChunkKey,
        version: ChunkVersion,
        pages: &[&BadPage],
    ) -> Result<Bytes> {
        let range = pages[0].range.start..pages[pages.len() - 1].range.end;
        let body = pb::FetchRequest {
            target: source.0,
            inode: key.inode.0,
            index: key.index.0,
            version: version.0,
            offset: range.start,
            len: range.end - range.start,
        };
        let mut call = Call::new(Opcode::Fetch, &body, Instant::now() + FETCH_TIMEOUT);
        call.landing = Landing::Aligned;
        match self.peers.peer(addr).call(call).await?.payload {
            Landed::Aligned(bytes) => Ok(bytes),
            _ => Ok(Bytes::new()),
        }
    }
}

#[derive(Default)]
struct Gathered {
    pages: Vec<(u32, Bytes)>,
    sources: Vec<TargetId>,
    /// What each source said that did not help.
    why: Vec<String>,
}

impl Gathered {
    fn note(&mut self, source: TargetId, why: &str) {
        let note = format!("target {source}: {why}");
        if self.why.last() != Some(&note) {
            self.why.push(note);
        }
    }
}

fn is_gone(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::ChunkNotFound
            | ErrorCode::StaleChunkVersion
            | ErrorCode::MissingVersion
            | ErrorCode::NotServing
    )
}

/// Who may have the right bytes, the likeliest first.
fn sources(map: &ClusterMap, target: TargetId) -> Vec<(TargetId, String)> {
    let chain = map
        .targets
        .get(&target)
        .and_then(|t| map.chains.get(&t.chain));
    let others = chain.into_iter().flat_map(|chain| &chain.targets);
    let mut others: Vec<_> = others
        .filter(|&&id| id != target)
        .filter_map(|id| map.targets.get(id))
        .filter_map(|t| Some((t, map.node_of(t)?)))
        .filter(|(_, node)| node.alive)
        .collect();
    others.sort_by_key(|(t, _)| t.state != PublicState::Serving);
    others
        .into_iter()
        .map(|(t, node)| (t.id, node.data_addr.clone()))
        .collect()
}

/// Divides pages into runs without gaps, each to be fetched by one call.
fn runs(pages: &[&BadPage]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (n, page) in pages.iter().enumerate() {
        match runs.last_mut() {
            Some(run)
                if pages[n - 1].range.end == page.range.start
                    && page.range.end - pages[run.start].range.start <= FETCH_BYTES =>
            {
                run.end = n + 1;
            }
            _ => runs.push(n..n + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(range: Range<u32>) -> BadPage {
        BadPage { range, checksum: 0 }
    }

    #[test]
    fn neighbouring_pages_are_fetched_together_up_to_a_limit() {
        let pages = [
            page(0..4096),
            page(4096..8192),
            page(12_288..16_384),
            page(16_384..16_500),
        ];
        let all: Vec<_> = pages.iter().collect();
        assert_eq!(runs(&all), [0..2, 2..4]);
        let many: Vec<_> = (0..1025).map(|n| page(n * 4096..(n + 1) * 4096)).collect();
        let many: Vec<_> = many.iter().collect();
        assert_eq!(runs(&many), [0..1024, 1024..1025]);
        assert!(runs(&[]).is_empty());
    }
}
