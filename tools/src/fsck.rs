//! `emberfs fsck`: does every replica hold the same bytes, and do chunks and metadata agree?
//!
//! Runs on a live cluster, and changes nothing unless it is asked to (`repair.rs`). Writes go on meanwhile, so a chunk may look different on
//! two replicas for an instant: whatever looks wrong is looked at again a few times, with a fresh
//! cluster map, and is reported only if it stays wrong.
//!
//! Checked per chunk: the same version, length and checksum on every SERVING replica (and on a SYNCING
//! one as far as it has come), the bytes on disk (read and verified by each server, unless
//! `--quick`), no write left unfinished; its file exists, is long enough, and has its chunk on this chain.
//!
//! An orphan is proved without a lock: numbers of inodes are never used again, and the chunks of a deleted
//! file go before its record does. A chunk that is there after its inode was not, and again after the
//! inode was looked for once more, belongs to no file. A hole is not a fault: a file may be sparse, so
//! a chunk that *no* replica has cannot be told from one that was never written. What can be proved is
//! a chunk that one replica has and another lacks.

mod chunks;
mod compare;
mod inodes;
mod remedy;
mod repair;
mod report;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use emberfs_proto::ids::{ChunkKey, InodeId};
use futures::StreamExt;

use crate::cli::FsckArgs;
use crate::failure::{Context, Exit, Failure, Result};
use crate::output::say;
use crate::progress::Progress;
use crate::rpc::Seat;

use chunks::{ChainReader, Cluster};
use compare::{Fault, View, compare, unreadable};
use inodes::{InodeTable, Judgement};
use remedy::{Remedy, remedy};
use report::FsckReport;

/// The shape of `--json`, for `--help`.
pub(crate) const JSON_HELP: &str = "\
Exit codes: 0 clean, 1 differences, 2 could not check everything

JSON (fields are only ever added):
  status           \"clean\" or \"differences\"
  deep             the bytes were read from disk
  chains, chunks, replicas, bytes, inodes   how much was looked at
  skipped_replicas replicas that are down or were not reachable, and so were not looked at
  unsettled        chunks that were being written at each look, or lie beyond their file's known length while
                   files are open for writing
  faults           [{code, chain, inode, index, what, repair}], at most 1000; `repair` is what --repair does; codes: missing-replica, version-differs,
                   length-differs, checksum-differs, content-differs, unreadable, unfinished-write, orphan,
                   beyond-end, wrong-chain
  more_faults      how many more there are
  repaired         faults that --repair put right (they are not among the faults)
  repair_failures  why others stay";

/// A suspect is looked at this often before it is reported.
const LOOKS: u32 = 3;
/// Pause between looks: longer than a write in flight, and than a heartbeat.
const PAUSE: Duration = Duration::from_secs(1);
/// Suspects that are remembered; more than that is no race.
const MAX_SUSPECTS: usize = 10_000;
/// Chunks between two updates of the progress line.
const PROGRESS_EVERY: u64 = 64;

/// A chunk that looked wrong.
type Suspect = (u32, ChunkKey);

/// `emberfs fsck`.
pub(crate) async fn fsck(cluster: Option<String>, args: FsckArgs) -> Result<Exit> {
    let seat = Seat::find(cluster, &args.dir)?;
    let report = Checker {
        address: seat.address,
        deep: !args.quick,
        parallel: args.parallel.into(),
        rate: args.rate,
        repair: args.repair,
    }
    .run()
    .await
    .map_err(Failure::broken)?;
    if args.json {
        say(serde_json::to_string_pretty(&report).context("cannot write JSON")?)?;
    } else {
        say(report.render())?;
    }
    Ok(if report.is_clean() {
        Exit::Success
    } else {
        Exit::Failure
    })
}

struct Checker {
    address: String,
    deep: bool,
    parallel: usize,
    /// Bytes per second.
    rate: Option<u64>,
    repair: bool,
}

/// A fault, and what would put it right.
pub(super) struct Found {
    chain: u32,
    key: ChunkKey,
    code: &'static str,
    what: String,
    remedy: Remedy,
}

impl Found {
    fn fault(self) -> Fault {
        let repair = self.remedy.describe();
        Fault::new(self.code, self.chain, self.key, self.what, repair)
    }
}

impl Checker {
    async fn run(&self) -> Result<FsckReport> {
        let progress = Progress::start("Reading the metadata");
        let mut cluster = Cluster::load(&self.address).await?;
        let mut inodes = InodeTable::load(&self.address).await?;
        let mut report = FsckReport::new(self.deep, cluster.chains().len(), inodes.len());
        let mut suspects: Vec<Suspect> = Vec::new();
        for (done, chain) in cluster.chains().into_iter().enumerate() {
            let of = report.chains;
            let mut look = 1;
            loop {
                let say = |chunks| {
                    progress.step(format!(
                        "Chain {} of {of}, {chunks} chunks checked",
                        done + 1
                    ));
                };
                match self
                    .check_chain(&cluster, &inodes, chain, &mut report, &say)
                    .await
                {
                    Ok(found) => {
                        suspects.extend(found);
                        break;
                    }
                    // Its server may have just died: with the next map the chain goes without it.
                    Err(_) if look < LOOKS => {
                        look += 1;
                        tokio::time::sleep(PAUSE).await;
                        cluster = Cluster::load(&self.address).await?;
                    }
                    Err(failure) => {
                        return Err(failure).context(format!("chain {chain} cannot be checked"));
                    }
                }
            }
            if suspects.len() > MAX_SUSPECTS {
                break;
            }
        }
        progress.step(format!("Looking again at {} chunks", suspects.len()));
        let overflow = suspects.len().saturating_sub(MAX_SUSPECTS);
        suspects.truncate(MAX_SUSPECTS);
        let mut faults = self.look_again(suspects, &mut inodes, &mut report).await?;
        if self.repair && !faults.is_empty() {
            report.repair_failures =
                repair::repair(&self.address, &faults, &mut inodes, &progress).await?;
            let before = faults.len();
            let again = faults.iter().map(|one| (one.chain, one.key)).collect();
            faults = self.look_again(again, &mut inodes, &mut report).await?;
            report.repaired = before - faults.len();
        }
        report.add_faults(faults.into_iter().map(Found::fault).collect(), overflow);
        Ok(report)
    }

    /// Goes through all chunks of a chain; answers those that look wrong.
    async fn check_chain(
        &self,
        cluster: &Cluster,
        inodes: &InodeTable,
        chain: u32,
        report: &mut FsckReport,
        say: &impl Fn(u64),
    ) -> Result<Vec<Suspect>> {
        let reader = cluster.reader(chain).await?;
        let mut seen = Seen::default();
        let keys = reader.merged();
        let checks = keys.map(|views| {
            let reader = &reader;
            async move {
                let (key, mut views) = views?;
                if self.deep {
                    reader.verify(key, &mut views).await;
                }
                Ok::<_, Failure>((key, views))
            }
        });
        let mut checks = std::pin::pin!(checks.buffer_unordered(self.parallel));
        let before = report.chunks;
        let started = Instant::now();
        let mut suspects = Vec::new();
        while let Some(checked) = checks.next().await {
            let (key, views) = checked?;
            seen.chunks += 1;
            for view in &views {
                let held = view.chunk.iter();
                seen.replicas += held.clone().count() as u64;
                seen.bytes += held.map(|chunk| u64::from(chunk.len)).sum::<u64>();
            }
            let placed = inodes.judge(cluster, chain, key, &views);
            if compare(&views).is_some() || placed != Judgement::Fine {
                suspects.push((chain, key));
            }
            if let Some(rate) = self.rate.filter(|_| self.deep) {
                let due = Duration::from_secs_f64(seen.bytes as f64 / rate as f64);
                tokio::time::sleep_until((started + due).into()).await;
            }
            if seen.chunks.is_multiple_of(PROGRESS_EVERY) {
                say(before + seen.chunks);
            }
        }
        report.chunks += seen.chunks;
        report.replicas += seen.replicas;
        report.bytes += seen.bytes;
        report.skipped_replicas += reader.skipped();
        Ok(suspects)
    }

    /// What is still wrong after a while is wrong.
    async fn look_again(
        &self,
        mut suspects: Vec<Suspect>,
        inodes: &mut InodeTable,
        report: &mut FsckReport,
    ) -> Result<Vec<Found>> {
        let mut faults = Vec::new();
        let mut before: HashMap<Suspect, Vec<Option<(u64, u64)>>> = HashMap::new();
        for look in 1..=LOOKS {
            if suspects.is_empty() {
                return Ok(Vec::new());
            }
            tokio::time::sleep(PAUSE).await;
            let cluster = Cluster::load(&self.address).await?;
            let of: Vec<InodeId> = suspects.iter().map(|(_, key)| key.inode).collect();
            inodes.refresh(&self.address, &of).await?;
            faults.clear();
            let mut left = Vec::new();
            let mut readers: HashMap<u32, ChainReader> = HashMap::new();
            for (chain, key) in suspects {
                let reader = match readers.entry(chain) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(cluster.reader(chain).await?),
                };
                let mut views = reader.one(key).await?;
                if self.deep {
                    reader.verify(key, &mut views).await;
                }
                // A chunk that has moved on since the last look is being written: its replicas differ
                // all the time, and rightly so.
                let records = |view: &View| view.chunk.map(|c| (c.committed, c.pending));
                let records: Vec<_> = views.iter().map(records).collect();
                let last = before.insert((chain, key), records.clone());
                let differs = compare(&views);
                let moves = last.is_none_or(|last| last != records);
                if differs.is_some() && moves && look == LOOKS && !unreadable(&views) {
                    report.unsettled += 1;
                    continue;
                }
                let fault = differs.or_else(|| match inodes.judge(&cluster, chain, key, &views) {
                    Judgement::Fine => None,
                    Judgement::Wrong(code, what) => Some((code, what)),
                    Judgement::Unsettled => {
                        report.unsettled += u64::from(look == LOOKS);
                        None
                    }
                });
                if let Some((code, what)) = fault {
                    faults.push(Found {
                        chain,
                        key,
                        code,
                        what,
                        remedy: remedy(code, &views),
                    });
                    left.push((chain, key));
                }
            }
            suspects = left;
        }
        Ok(faults)
    }
}

#[derive(Default)]
struct Seen {
    chunks: u64,
    replicas: u64,
    bytes: u64,
}
