//! Sequential writes and reads.

use emberfs_proto::buf::AlignedBuf;
use rand::{RngExt, SeedableRng};

use crate::cli::{ReadArgs, StreamArgs};
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
    args: &ReadArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let ReadArgs { stream, readers } = *args;
    let data = random(stream.block as usize);
    fill(subject, &stream, &data)?;
    let names: Vec<_> = (0..stream.jobs).map(name).collect();
    subject.drop_caches(&names)?;
    let scan = |job: u32| -> Result<()> {
        let name = name(job / readers);
        let mut file = subject.open(&name)?;
        let mut buf = AlignedBuf::zeroed(stream.block as usize);
        for offset in part(&stream, job % readers, readers) {
            let wanted = stream.block.min(stream.size - offset) as usize;
            file.read_with(offset, &mut buf[..wanted], &mut |got| {
                if got != &data[..wanted] {
                    return fail(format!(
                        "wrong data: {name} at byte {offset}: do not trust this storage"
                    ));
                }
                Ok(())
            })?;
        }
        file.close()
    };
    let ((), spent) = meter.time(|| in_parallel(stream.jobs * readers, scan))?;
    let total = stream.size * u64::from(stream.jobs);
    report.add("read", spent, total, total.div_ceil(stream.block), None);
    remove(subject, &stream)
}

/// Where the blocks begin that the given one of a file's readers reads.
fn part(stream: &StreamArgs, reader: u32, readers: u32) -> impl Iterator<Item = u64> + use<> {
    let (block, blocks) = (stream.block, stream.size.div_ceil(stream.block));
    let first = |reader: u32| blocks * u64::from(reader) / u64::from(readers);
    (first(reader)..first(reader + 1)).map(move |index| index * block)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_of_a_file_read_each_block_once() {
        for (size, block, readers) in [(10, 3, 1), (10, 3, 3), (10, 3, 9), (0, 3, 2), (12, 3, 4)] {
            let jobs = 1;
            let stream = StreamArgs { size, block, jobs };
            let offsets: Vec<_> = (0..readers)
                .flat_map(|reader| part(&stream, reader, readers))
                .collect();
            let all: Vec<_> = (0..size).step_by(block as usize).collect();
            assert_eq!(offsets, all, "{readers} readers of {size} bytes");
        }
    }
}
