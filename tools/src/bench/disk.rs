//! The chunk engine alone, next to fio (io_uring, O_DIRECT) with the same sizes and depths on the same file
//! system, in turn: fio is the floor that the file system gives a program that does nothing else.
//!
//! The engine is asked by tasks on worker threads, as many as a server would have (`--workers`), each task with one
//! request in flight; fio has one thread.
//!
//! Each round begins with an empty engine and an empty file, so that neither writes into space that the
//! other side had to allocate. An engine's write is durable when it returns, fio flushes once at its end.

mod fio;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::checksum::{fragment_checksums, verify_fragments};
use emberfs_proto::ids::{ChainVersion, ChunkKey, ChunkVersion, ClientId, TargetId, WriteTag};
use emberfs_proto::layout::splitmix64;
use emberfs_storage::engine::{
    Durability, Engine, EngineConfig, Prepare, PrepareKind, ReadVersion, Verify,
};
use futures::future::try_join_all;
use serde::Serialize;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::cli::{EngineArgs, WriteDurability};
use crate::failure::{Context, Failure, Result, fail};
use crate::show;

use super::report::rate;
use super::stream::random;
use super::{Meter, Spent};

const CHUNK: u32 = 4 << 20;
const PAGE: u32 = 16 << 10;
const BLOCK: u32 = 1 << 20;
const SMALL: u32 = 4 << 10;
const TARGET: TargetId = TargetId(1);
/// File that all chunks belong to.
const INODE: u64 = 1;

/// What is measured, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Case {
    Write,
    Read,
    RandomSmall,
    RandomPage,
}

const CASES: [Case; 4] = [Case::Write, Case::Read, Case::RandomSmall, Case::RandomPage];

impl Case {
    fn title(self) -> &'static str {
        match self {
            Self::Write => "sequential write, 1 MiB",
            Self::Read => "sequential read, 1 MiB",
            Self::RandomSmall => "random read, 4 KiB",
            Self::RandomPage => "random read, 16 KiB, verified",
        }
    }

    fn block(self) -> u32 {
        match self {
            Self::Write | Self::Read => BLOCK,
            Self::RandomSmall => SMALL,
            Self::RandomPage => PAGE,
        }
    }

    fn random(self) -> bool {
        matches!(self, Self::RandomSmall | Self::RandomPage)
    }

    fn depth(self, args: &EngineArgs) -> u32 {
        if self.random() {
            args.depth
        } else {
            args.stream_depth
        }
    }
}

/// One measurement of one side.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    bytes: u64,
    seconds: f64,
    /// Of the whole process, user and system.
    cpu_seconds: f64,
}

impl Sample {
    fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.seconds.max(1e-9)
    }

    fn cpu_per_gib(&self) -> f64 {
        self.cpu_seconds / (self.bytes as f64 / f64::from(1 << 30)).max(1e-9)
    }
}

/// The shape of `emberfs bench disk --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct DiskReport {
    subject: String,
    size: u64,
    rounds: u32,
    cases: Vec<CaseReport>,
}

/// Medians of a case, and every round.
#[derive(Debug, Serialize)]
struct CaseReport {
    case: Case,
    block: u32,
    depth: u32,
    engine: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    fio: Option<Side>,
    /// The engine's median rate ÷ that of fio.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Side {
    mib_per_second: f64,
    operations_per_second: f64,
    cpu_seconds_per_gib: f64,
    rounds: Vec<Sample>,
}

impl Side {
    fn new(rounds: Vec<Sample>, block: u32) -> Self {
        let mib_per_second = median(rounds.iter().map(Sample::mib_per_second));
        Self {
            mib_per_second,
            operations_per_second: mib_per_second * f64::from(1 << 20) / f64::from(block),
            cpu_seconds_per_gib: median(rounds.iter().map(Sample::cpu_per_gib)),
            rounds,
        }
    }
}

impl DiskReport {
    pub(super) fn render(&self) -> String {
        let rows = self.cases.iter().map(|case| {
            let fio = |pick: fn(&Side) -> f64, digits: usize| match &case.fio {
                Some(side) => format!("{:.digits$}", pick(side)),
                None => "-".to_owned(),
            };
            vec![
                case.case.title().to_owned(),
                case.depth.to_string(),
                rate(case.engine.mib_per_second),
                fio(|side| side.mib_per_second, 0),
                rate(case.engine.operations_per_second),
                fio(|side| side.operations_per_second, 0),
                case.ratio
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
                format!("{:.2}", case.engine.cpu_seconds_per_gib),
                fio(|side| side.cpu_seconds_per_gib, 2),
            ]
        });
        let header = [
            "case",
            "depth",
            "MiB/s",
            "fio",
            "ops/s",
            "fio",
            "ratio",
            "CPU s/GiB",
            "fio",
        ];
        format!("{}\n{}", self.subject, show::table(&header, rows))
    }
}

/// A directory that is removed whatever happens.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("emberfs-bench-disk-{}", std::process::id()));
        std::fs::create_dir(&path).context(format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It was made by us, and what is left in it is named by its path.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server's worker threads; ended behind the caller's back, when their tasks have ended.
struct Workers(Option<Runtime>);

impl Workers {
    fn start(count: u16) -> Result<(Self, Handle)> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(usize::from(count))
            .enable_all()
            .build()
            .context("cannot start worker threads")?;
        let handle = runtime.handle().clone();
        Ok((Self(Some(runtime)), handle))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Measures in a directory of its own below `parent`.
pub(super) async fn run(parent: &Path, args: &EngineArgs) -> Result<DiskReport> {
    if !args.no_fio {
        fio::look().await?;
    }
    let size = args.size.next_multiple_of(u64::from(CHUNK));
    let scratch = Scratch::new(parent)?;
    let (_workers, workers) = Workers::start(args.workers)?;
    let mut engine: [Vec<Sample>; 4] = Default::default();
    let mut floor: [Vec<Sample>; 4] = Default::default();
    for round in 0..args.rounds {
        let path = scratch.0.join(format!("disk-{round}"));
        let file = scratch.0.join(format!("fio-{round}"));
        let driver = Driver::open(&path, size, args, workers.clone()).await?;
        for (at, case) in CASES.into_iter().enumerate() {
            // The side that goes first changes, so that neither has the better half of a drift.
            let engine_first = round % 2 == 0;
            if engine_first {
                engine[at].push(driver.measure(case, args).await?);
            }
            if !args.no_fio {
                floor[at].push(fio::measure(&file, case, size, args).await?);
            }
            if !engine_first {
                engine[at].push(driver.measure(case, args).await?);
            }
        }
        driver.engine.shutdown().await;
        std::fs::remove_dir_all(&path).context(format!("cannot remove {}", path.display()))?;
        if !args.no_fio {
            std::fs::remove_file(&file).context(format!("cannot remove {}", file.display()))?;
        }
    }
    let cases = CASES.into_iter().zip(engine.into_iter().zip(floor));
    let cases = cases.map(|(case, (engine, floor))| {
        let engine = Side::new(engine, case.block());
        let fio = (!args.no_fio).then(|| Side::new(floor, case.block()));
        CaseReport {
            case,
            block: case.block(),
            depth: case.depth(args),
            ratio: fio
                .as_ref()
                .map(|fio| engine.mib_per_second / fio.mib_per_second.max(1e-9)),
            engine,
            fio,
        }
    });
    Ok(DiskReport {
        subject: format!("the chunk engine and fio in {}", parent.display()),
        size,
        rounds: args.rounds,
        cases: cases.collect(),
    })
}

/// An open engine and what goes into it.
struct Driver {
    engine: Engine,
    workers: Handle,
    size: u64,
    /// A block and its checksums; every block of the disk is the same.
    data: Bytes,
    checksums: Arc<[u32]>,
}

impl Driver {
    async fn open(path: &Path, size: u64, args: &EngineArgs, workers: Handle) -> Result<Self> {
        std::fs::create_dir(path).context(format!("cannot create {}", path.display()))?;
        let config = EngineConfig {
            durability: match args.durability {
                WriteDurability::Power => Durability::Power,
                WriteDurability::Process => Durability::Process,
            },
            ..EngineConfig::new(path)
        };
        let engine = tokio::task::spawn_blocking(move || Engine::open(config))
            .await
            .context("the engine did not open")??;
        engine.create_target(TARGET).await?;
        let mut data = AlignedBuf::new(BLOCK as usize);
        data.copy_from_slice(&random(BLOCK as usize));
        let checksums = fragment_checksums(0, &data, PAGE).into();
        Ok(Self {
            engine,
            workers,
            size,
            data: data.freeze(),
            checksums,
        })
    }

    async fn measure(&self, case: Case, args: &EngineArgs) -> Result<Sample> {
        let bytes = Arc::new(AtomicU64::new(0));
        let next = Arc::new(AtomicU64::new(0));
        let until = Instant::now() + Duration::from_secs(args.seconds);
        let meter = Meter::new();
        let start = meter.start()?;
        let workers = (0..case.depth(args)).map(|worker| {
            let (driver, bytes, next) = (self.handle(), Arc::clone(&bytes), Arc::clone(&next));
            let work = async move {
                let done = match case {
                    Case::Write => driver.append(&next).await?,
                    Case::Read => driver.scan(&next).await?,
                    Case::RandomSmall | Case::RandomPage => {
                        let seed = u64::from(worker) + 1;
                        driver.random(case, seed, until).await?
                    }
                };
                bytes.fetch_add(done, Ordering::Relaxed);
                Ok::<_, Failure>(())
            };
            async move {
                let joined = self.workers.spawn(work).await;
                joined.context("a worker broke off")?
            }
        });
        try_join_all(workers).await.map(|_: Vec<()>| ())?;
        let Spent {
            seconds,
            cpu_seconds,
            ..
        } = meter.stop(&start);
        Ok(Sample {
            bytes: bytes.load(Ordering::Relaxed),
            seconds,
            cpu_seconds,
        })
    }

    fn handle(&self) -> Self {
        Self {
            engine: self.engine.clone(),
            workers: self.workers.clone(),
            size: self.size,
            data: self.data.clone(),
            checksums: Arc::clone(&self.checksums),
        }
    }

    /// Fills chunk after chunk, each with one append after the other.
    async fn append(&self, next: &AtomicU64) -> Result<u64> {
        let mut done = 0;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index * u64::from(CHUNK) >= self.size {
                return Ok(done);
            }
            let key = ChunkKey::new(INODE, index as u32);
            for (version, offset) in (1..).zip((0..CHUNK).step_by(BLOCK as usize)) {
                let version = ChunkVersion(version);
                let prepare = Prepare {
                    version,
                    chain_version: ChainVersion(1),
                    tag: WriteTag {
                        client: ClientId(1),
                        channel: index as u32,
                        sequence: version.0,
                    },
                    kind: PrepareKind::Write {
                        offset,
                        data: self.data.clone(),
                        checksums: self.checksums.to_vec(),
                        size_hint: CHUNK,
                    },
                    page_size: PAGE,
                    chunk_size: CHUNK,
                };
                self.engine.prepare(TARGET, key, prepare).await?;
                self.engine
                    .commit(TARGET, key, version, ChainVersion(1))
                    .await?;
                done += u64::from(BLOCK);
            }
        }
    }

    /// Reads block after block; their readers would verify them.
    async fn scan(&self, next: &AtomicU64) -> Result<u64> {
        let mut done = 0;
        loop {
            let at = next.fetch_add(u64::from(BLOCK), Ordering::Relaxed);
            if at >= self.size {
                return Ok(done);
            }
            self.read(at, BLOCK, false).await?;
            done += u64::from(BLOCK);
        }
    }

    async fn random(&self, case: Case, seed: u64, until: Instant) -> Result<u64> {
        let block = case.block();
        let blocks = self.size / u64::from(block);
        let mut dice = seed;
        let mut done = 0;
        while Instant::now() < until {
            let at = splitmix64(&mut dice) % blocks * u64::from(block);
            self.read(at, block, case == Case::RandomPage).await?;
            done += u64::from(block);
        }
        Ok(done)
    }

    async fn read(&self, at: u64, len: u32, verify: bool) -> Result<()> {
        let chunk = u64::from(CHUNK);
        let key = ChunkKey::new(INODE, (at / chunk) as u32);
        let offset = (at % chunk) as u32;
        let which = ReadVersion::Committed;
        // Parts of pages as a reader gets them that asks for the way to be checked and not the disk.
        let read = self
            .engine
            .read_range(TARGET, key, which, offset..offset + len, Verify::Transfer)
            .await?;
        if read.data.len() != len as usize {
            return fail(format!("short read at byte {at}: the engine lost data"));
        }
        let sound =
            || verify_fragments(offset, &read.data, read.page_size, &read.checksums).is_ok();
        if verify && !sound() {
            return fail(format!("wrong data at byte {at}: do not trust this disk"));
        }
        Ok(())
    }
}

/// The middle one; of an even number the mean of the two.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!(median([].into_iter()).abs() < 1e-9);
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0].into_iter()) - 2.5).abs() < 1e-9);
    }

    #[tokio::test]
    async fn the_engine_writes_and_reads_and_leaves_nothing_behind() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let args = EngineArgs {
            size: 5 << 20,
            rounds: 2,
            seconds: 1,
            stream_depth: 2,
            depth: 4,
            workers: 1,
            durability: WriteDurability::Process,
            no_fio: true,
        };
        let report = run(temp.path(), &args).await.expect("measured");
        assert_eq!(report.size, 8 << 20, "whole chunks");
        for case in &report.cases {
            assert_eq!(case.engine.rounds.len(), 2);
            let enough =
                case.engine.rounds.iter().all(|round| {
                    round.bytes > 0 && (case.case.random() || round.bytes == report.size)
                });
            assert!(enough, "{case:?}");
        }
        assert!(report.render().contains("random read, 16 KiB, verified"));
        assert_eq!(std::fs::read_dir(temp.path()).expect("there").count(), 0);
    }
}
