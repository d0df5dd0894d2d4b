//! Sequential writes and reads.

use emberfs_proto::buf::AlignedBuf;
use rand::{RngExt, SeedableRng};

use crate::cli::StreamArgs;
use crate::failure::{Failure, Result, fail};

use super::Meter;
use super::report::BenchReport;
use super::subject::Subject;

/// Writes each file from start to end, then fsync and close.
pub(super) fn write(
    subject: &dyn Subject,
    args: &StreamArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let data = random(args.block as usize);
    let ((), spent) = meter.time(|| fill(subject, args, &data))?;
    let total = args.size * u64::from(args.jobs);
    report.add("write", spent, total, total.div_ceil(args.block), None);
    remove(subject, args)
}

/// Writes the files first, unmeasured, and reads them with dropped caches.
pub(super) fn read(
    subject: &dyn Subject,
    args: &StreamArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let data = random(args.block as usize);
    fill(subject, args, &data)?;
    let names: Vec<_> = (0..args.jobs).map(name).collect();
    subject.drop_caches(&names)?;
    let scan = |job: u32| -> Result<()> {
        let mut file = subject.open(&name(job))?;
        let mut buf = AlignedBuf::zeroed(args.block as usize);
        for offset in (0..args.size).step_by(args.block as usize) {
            let wanted = args.block.min(args.size - offset) as usize;
            file.read_with(offset, &mut buf[..wanted], &mut |got| {
                if got != &data[..wanted] {
                    return fail(format!(
                        "wrong data: {} at byte {offset}: do not trust this storage",
                        name(job)
                    ));
                }
                Ok(())
            })?;
        }
        file.close()
    };
    let ((), spent) = meter.time(|| in_parallel(args.jobs, scan))?;
    let total = args.size * u64::from(args.jobs);
    report.add("read", spent, total, total.div_ceil(args.block), None);
    remove(subject, args)
}

fn fill(subject: &dyn Subject, args: &StreamArgs, data: &[u8]) -> Result<()> {
    in_parallel(args.jobs, |job| {
        let mut file = subject.create(&name(job))?;
        for offset in (0..args.size).step_by(args.block as usize) {
            let length = args.block.min(args.size - offset) as usize;
            file.write_at(offset, &data[..length])?;
        }
        file.sync()?;
        file.close()
    })
}

fn remove(subject: &dyn Subject, args: &StreamArgs) -> Result<()> {
    (0..args.jobs).try_for_each(|job| subject.unlink(&name(job)))
}

fn name(job: u32) -> String {
    format!("stream-{job}")
}

/// Bytes that do not compress, aligned as O_DIRECT wants them.
pub(super) fn random(length: usize) -> AlignedBuf {
    let mut data = AlignedBuf::zeroed(length);
    rand::rngs::StdRng::seed_from_u64(1).fill(&mut data[..]);
    data
}

/// One thread per job; the first failure counts.
pub(super) fn in_parallel(jobs: u32, work: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..jobs)
            .map(|job| scope.spawn(move || work(job)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::new("a worker thread panicked")))
        })
    })
}
