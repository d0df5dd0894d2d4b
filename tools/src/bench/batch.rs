//! Shuffled small files in batches: what a loader of images asks for.
//!
//! Through the native client a batch is one call for many names (whole files, in any order); of a directory it is
//! open, read and close of each.

use emberfs_proto::layout::splitmix64;

use crate::cli::BatchArgs;
use crate::failure::{Failure, Result, fail};

use super::Meter;
use super::report::BenchReport;
use super::stream::{in_parallel, random};
use super::subject::Subject;

/// Writers while the files are made.
const WRITERS: u32 = 8;

/// Makes the files, then reads all of them once, in an order that chance decides.
pub(super) fn run(
    subject: &dyn Subject,
    args: &BatchArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let data = random(args.size as usize);
    let mut names: Vec<_> = (0..args.files)
        .map(|file| format!("batch-{file}"))
        .collect();
    let bytes = args.size * u64::from(args.files);
    let create = |job: u32| {
        for name in names.iter().skip(job as usize).step_by(WRITERS as usize) {
            let mut file = subject.create(name)?;
            file.write_at(0, &data)?;
            file.close()?;
        }
        Ok(())
    };
    let ((), spent) = meter.time(|| in_parallel(WRITERS, create))?;
    report.add("create", spent, bytes, names.len() as u64, None);
    subject.drop_caches(&names)?;

    shuffle(&mut names, u64::from(args.files));
    let read = |job: u32| {
        let batches = names.chunks(args.batch as usize);
        for batch in batches.skip(job as usize).step_by(args.jobs as usize) {
            let mut left = batch.len();
            subject.fetch(batch, &mut |name, read| {
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| Failure::new("a file came twice"))?;
                if read == &data[..] {
                    return Ok(());
                }
                fail(format!("wrong data: {name}: do not trust this storage"))
            })?;
            if left > 0 {
                return fail(format!("{left} files of a batch did not come"));
            }
        }
        Ok(())
    };
    let ((), spent) = meter.time(|| in_parallel(args.jobs, read))?;
    report.add("fetch", spent, bytes, names.len() as u64, None);
    let remove = |job: u32| {
        let mut mine = names.iter().skip(job as usize).step_by(WRITERS as usize);
        mine.try_for_each(|name| subject.unlink(name))
    };
    in_parallel(WRITERS, remove)
}

/// Fisher and Yates.
fn shuffle(names: &mut [String], seed: u64) {
    let mut dice = seed;
    for last in (1..names.len()).rev() {
        names.swap(last, (splitmix64(&mut dice) % (last as u64 + 1)) as usize);
    }
}
