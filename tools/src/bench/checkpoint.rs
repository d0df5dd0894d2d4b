//! Checkpoints: every rank writes its shard under a temporary name, makes it durable and renames it; at the end
//! all ranks read back the last checkpoint.
//!
//! Each block bears the round, the rank and its place, so that a block of another one is noticed.

use std::sync::Mutex;
use std::time::Instant;

use emberfs_proto::buf::AlignedBuf;

use crate::cli::CheckpointArgs;
use crate::failure::{Context, Failure, Result, fail};

use super::latency::{histogram, latency, record};
use super::report::BenchReport;
use super::stream::{in_parallel, random};
use super::subject::Subject;
use super::{Meter, Spent};

/// Bytes of the mark at the begin of a block.
const MARK: usize = 16;

/// Saves `args.rounds` checkpoints and restores the last one. The latencies are those of whole shards: the
/// longest save is what training waits for.
pub(super) fn run(
    subject: &dyn Subject,
    args: &CheckpointArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    if args.block < MARK as u64 {
        return fail(format!("--block must be at least {MARK} bytes"));
    }
    let data = random(args.block as usize);
    let mut saves = histogram()?;
    let mut spent = Spent::default();
    for round in 0..args.rounds {
        let save = |rank: u32| save(subject, args, &data, (round, rank));
        spent += timed(args, meter, &mut saves, save)?;
        if let Some(previous) = round.checked_sub(1) {
            (0..args.ranks).try_for_each(|rank| subject.unlink(&name(previous, rank)))?;
        }
    }
    let total = args.shard * u64::from(args.ranks);
    let rounds = u64::from(args.rounds);
    let shards = u64::from(args.ranks);
    report.add(
        "save",
        spent,
        total * rounds,
        shards * rounds,
        Some(latency(&saves)),
    );

    let last = args.rounds - 1;
    let names: Vec<_> = (0..args.ranks).map(|rank| name(last, rank)).collect();
    subject.drop_caches(&names)?;
    let mut restores = histogram()?;
    let restore = |rank: u32| restore(subject, args, &data, (last, rank));
    let spent = timed(args, meter, &mut restores, restore)?;
    report.add("restore", spent, total, shards, Some(latency(&restores)));
    names.iter().try_for_each(|name| subject.unlink(name))
}

/// All ranks at once, each one timed.
fn timed(
    args: &CheckpointArgs,
    meter: &Meter,
    histogram: &mut hdrhistogram::Histogram<u64>,
    work: impl Fn(u32) -> Result<()> + Sync,
) -> Result<Spent> {
    let all = Mutex::new(histogram);
    let rank = |rank: u32| {
        let start = Instant::now();
        work(rank).context(format!("rank {rank}"))?;
        let mut all = all
            .lock()
            .map_err(|_| Failure::new("a worker thread panicked"))?;
        record(&mut all, start.elapsed());
        Ok(())
    };
    let ((), spent) = meter.time(|| in_parallel(args.ranks, rank))?;
    Ok(spent)
}

fn save(
    subject: &dyn Subject,
    args: &CheckpointArgs,
    data: &[u8],
    (round, rank): (u32, u32),
) -> Result<()> {
    let temporary = format!("{}.tmp", name(round, rank));
    let mut file = subject.create(&temporary)?;
    let mut block = copy(data);
    for offset in (0..args.shard).step_by(args.block as usize) {
        block[..MARK].copy_from_slice(&mark(round, rank, offset));
        let length = args.block.min(args.shard - offset) as usize;
        file.write_at(offset, &block[..length])?;
    }
    file.sync()?;
    file.close()?;
    subject.rename(&temporary, &name(round, rank))
}

fn restore(
    subject: &dyn Subject,
    args: &CheckpointArgs,
    data: &[u8],
    (round, rank): (u32, u32),
) -> Result<()> {
    let name = name(round, rank);
    let mut file = subject.open(&name)?;
    let mut block = copy(data);
    let mut buf = AlignedBuf::zeroed(data.len());
    for offset in (0..args.shard).step_by(args.block as usize) {
        block[..MARK].copy_from_slice(&mark(round, rank, offset));
        let length = args.block.min(args.shard - offset) as usize;
        let got = file.read_at(offset, &mut buf[..length])?;
        if got != length || buf[..got] != block[..got] {
            return fail(format!(
                "wrong data: {name} at byte {offset}: do not trust this storage"
            ));
        }
    }
    file.close()
}

fn name(round: u32, rank: u32) -> String {
    format!("checkpoint-{round}.rank-{rank}")
}

fn mark(round: u32, rank: u32, offset: u64) -> [u8; MARK] {
    let shard = u128::from(round) << 96 | u128::from(rank) << 64;
    (shard | u128::from(offset)).to_le_bytes()
}

fn copy(data: &[u8]) -> AlignedBuf {
    let mut block = AlignedBuf::new(data.len());
    block.copy_from_slice(data);
    block
}
