//! Random reads of one file, one at a time per reader.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::layout::splitmix64;

use crate::cli::RandreadArgs;
use crate::failure::{Context, Failure, Result, fail};

use super::Meter;
use super::latency::{histogram, latency, record};
use super::report::BenchReport;
use super::stream::{in_parallel, random};
use super::subject::Subject;

const NAME: &str = "randread";
/// The file is written in pieces of about this size, all of them the same.
const PIECE: u64 = 1 << 20;

/// Writes the file, unmeasured, and reads it for `args.seconds` with dropped caches.
pub(super) fn run(
    subject: &dyn Subject,
    args: &RandreadArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    // A whole number of blocks, so that a block has the same bytes in every piece.
    let piece = PIECE.next_multiple_of(args.block);
    let data = random(piece as usize);
    let blocks = (args.size / args.block).max(1);
    let size = blocks * args.block;
    let mut file = subject.create(NAME)?;
    for offset in (0..size).step_by(piece as usize) {
        let length = piece.min(size - offset) as usize;
        file.write_at(offset, &data[..length])?;
    }
    file.sync()?;
    file.close()?;
    subject.drop_caches(&[NAME.to_owned()])?;

    let all = Mutex::new(histogram()?);
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let reader = |job: u32| {
        let mut mine = histogram()?;
        let mut file = subject.open(NAME)?;
        let mut buf = AlignedBuf::zeroed(args.block as usize);
        let mut dice = u64::from(job) + 1;
        while Instant::now() < until {
            let offset = splitmix64(&mut dice) % blocks * args.block;
            let start = Instant::now();
            let got = file.read_at(offset, &mut buf)?;
            record(&mut mine, start.elapsed());
            let from = (offset % piece) as usize;
            if got != buf.len() || buf[..] != data[from..from + got] {
                return fail(format!(
                    "wrong data: {NAME} at byte {offset}: do not trust this storage"
                ));
            }
        }
        file.close()?;
        let mut all = all
            .lock()
            .map_err(|_| Failure::new("a worker thread panicked"))?;
        all.add(&mine).context("cannot add up latencies")
    };
    let ((), spent) = meter.time(|| in_parallel(args.jobs, reader))?;
    let all = all
        .into_inner()
        .map_err(|_| Failure::new("a worker thread panicked"))?;
    let reads = all.len();
    let latency = latency(&all);
    report.add("randread", spent, reads * args.block, reads, Some(latency));
    subject.unlink(NAME)
}
