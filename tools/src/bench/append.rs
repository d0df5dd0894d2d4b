//! Appends, each made durable: what a log or a database does.

use std::time::{Duration, Instant};

use crate::cli::AppendArgs;
use crate::failure::{Result, fail};

use super::Meter;
use super::latency::{histogram, latency, record};
use super::report::BenchReport;
use super::stream::random;
use super::subject::Subject;

const NAME: &str = "append";

/// Appends to one file and waits for fsync, again and again for `args.seconds`.
pub(super) fn run(
    subject: &dyn Subject,
    args: &AppendArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let data = random(args.block as usize);
    let mut all = histogram()?;
    let mut file = subject.create(NAME)?;
    let mut end = 0;
    let ((), spent) = meter.time(|| {
        let until = Instant::now() + Duration::from_secs(args.seconds);
        while Instant::now() < until {
            let start = Instant::now();
            file.write_at(end, &data)?;
            file.sync()?;
            record(&mut all, start.elapsed());
            end += args.block;
        }
        Ok(())
    })?;
    file.close()?;
    match subject.stat(NAME)? {
        size if size == end => {}
        size => {
            return fail(format!(
                "wrong length: {NAME} has {size} bytes, not {end}: do not trust this storage"
            ));
        }
    }
    report.add("append", spent, end, all.len(), Some(latency(&all)));
    subject.unlink(NAME)
}
