//! Many small files: what a directory of images costs.

use std::sync::Mutex;
use std::time::Instant;

use emberfs_proto::buf::AlignedBuf;

use crate::cli::SmallArgs;
use crate::failure::{Context, Failure, Result, fail};

use super::Meter;
use super::latency::{histogram, latency};
use super::report::BenchReport;
use super::stream::{in_parallel, random};
use super::subject::Subject;

/// Workers that make the files that are there before.
const FILLERS: u32 = 64;

/// Create, stat, open-read-close, unlink.
pub(super) fn run(
    subject: &dyn Subject,
    args: &SmallArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let data = random(args.size as usize);
    let fill = |job: u32| {
        let mut mine = (job..args.beside).step_by(FILLERS as usize);
        mine.try_for_each(|file| subject.create(&format!("beside-{file}"))?.close())
    };
    in_parallel(FILLERS, fill)?;
    let names: Vec<_> = (0..args.files)
        .map(|file| format!("small-{file}"))
        .collect();
    let bytes = args.size * u64::from(args.files);

    let create = |name: &str| {
        let mut file = subject.create(name)?;
        file.write_at(0, &data)?;
        file.close()
    };
    phase("create", bytes, &names, args.jobs, meter, report, &create)?;
    subject.drop_caches(&names)?;
    let stat = |name: &str| match subject.stat(name)? {
        size if size == args.size => Ok(()),
        size => fail(format!(
            "wrong length: {name} has {size} bytes: do not trust this storage"
        )),
    };
    phase("stat", 0, &names, args.jobs, meter, report, &stat)?;
    subject.drop_caches(&names)?;
    let read = |name: &str| {
        let mut file = subject.open(name)?;
        let mut buf = AlignedBuf::zeroed(data.len());
        if file.read_at(0, &mut buf)? != data.len() || buf[..] != data[..] {
            return fail(format!("wrong data: {name}: do not trust this storage"));
        }
        file.close()
    };
    phase("read", bytes, &names, args.jobs, meter, report, &read)?;
    phase("unlink", 0, &names, args.jobs, meter, report, &|name| {
        subject.unlink(name)
    })
}

fn phase(
    title: &'static str,
    bytes: u64,
    names: &[String],
    jobs: u32,
    meter: &Meter,
    report: &mut BenchReport,
    operation: &(dyn Fn(&str) -> Result<()> + Sync),
) -> Result<()> {
    let all = Mutex::new(histogram()?);
    let worker = |job: u32| {
        let mut mine = histogram()?;
        for name in names.iter().skip(job as usize).step_by(jobs as usize) {
            let start = Instant::now();
            operation(name)?;
            mine.saturating_record(start.elapsed().as_micros() as u64);
        }
        let mut all = all
            .lock()
            .map_err(|_| Failure::new("a worker thread panicked"))?;
        all.add(&mine).context("cannot add up latencies")
    };
    let ((), spent) = meter.time(|| in_parallel(jobs, worker))?;
    let all = all
        .into_inner()
        .map_err(|_| Failure::new("a worker thread panicked"))?;
    let latency = latency(&all);
    report.add(title, spent, bytes, names.len() as u64, Some(latency));
    Ok(())
}
