//! The longest pauses that an application sees: one thread reads and one writes without a break, while
//! servers are killed, silenced and restarted ([`faults`]).
//!
//! A write counts until its fsync returns, so each is an acknowledged one; a read is of a random place
//! with nothing cached. An error or a wrong byte ends the measurement as a failure: a pause is all that
//! an application may see.

mod faults;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::layout::splitmix64;
use hdrhistogram::Histogram;

use crate::cli::PauseArgs;
use crate::failure::{Context, Failure, Result, fail};
use crate::local::LocalCluster;

use super::Meter;
use super::report::{BenchReport, FaultReport, Latency, Longest, PauseReport, Rates, SecondReport};
use super::stream::random;
use super::subject::Subject;

/// Longest pause that is told from a longer one, microseconds.
const MAX_US: u64 = 600_000_000;
/// What the reader reads and the writer writes.
const NAMES: [&str; 2] = ["pause-read", "pause-write"];

/// A stretch of time in which something was done to the cluster.
#[derive(Debug)]
struct Event {
    what: String,
    from: Duration,
    to: Duration,
}

/// When an operation began and how long it took, since the measurement began.
#[derive(Clone, Copy, Debug)]
struct Sample {
    from: Duration,
    took: Duration,
}

impl Event {
    fn holds(&self, at: Duration) -> bool {
        (self.from..self.to).contains(&at)
    }
}

impl Sample {
    /// From then until now.
    fn since(clock: Instant, from: Duration) -> Self {
        let took = clock.elapsed().saturating_sub(from);
        Self { from, took }
    }

    fn end(&self) -> Duration {
        self.from + self.took
    }
}

/// Runs the load and the faults, for `args.seconds` at least.
pub(super) fn run(
    subject: &dyn Subject,
    args: &PauseArgs,
    cluster: Option<&LocalCluster>,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let plan = faults::plan(args, cluster)?;
    let data = random(args.block as usize);
    let blocks = (args.size / args.block).max(1);
    let mut file = subject.create(NAMES[0])?;
    for block in 0..blocks {
        file.write_at(block * args.block, &data)?;
    }
    file.sync()?;
    file.close()?;

    let stop = AtomicBool::new(false);
    let events = Mutex::new(Vec::new());
    let clock = Instant::now();
    let until = || !stop.load(Ordering::Relaxed);
    let reader = || ended(&stop, || read(subject, &data, blocks, clock, until));
    let writer = || ended(&stop, || write(subject, &data, blocks, clock, until));
    let work = || -> Result<[Vec<Sample>; 2]> {
        std::thread::scope(|scope| {
            let workers = [scope.spawn(reader), scope.spawn(writer)];
            let outcome = faults::run(&plan, cluster, clock, &events, until);
            if outcome.is_ok() {
                faults::rest(clock + Duration::from_secs(args.seconds), until);
            }
            stop.store(true, Ordering::Relaxed);
            let samples = workers.map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(Failure::new("a worker thread panicked")))
            });
            let [reads, writes] = samples;
            // What the application saw counts more than what went wrong with the faults.
            let both = [reads?, writes?];
            outcome.map(|()| both)
        })
    };
    let (samples, spent) = meter.time(work)?;
    let events = events
        .into_inner()
        .map_err(|_| Failure::new("a worker thread panicked"))?;
    for (name, samples) in ["read", "write"].into_iter().zip(&samples) {
        let count = samples.len() as u64;
        let latency = latency(samples)?;
        report.add(name, spent, count * args.block, count, Some(latency));
    }
    report.pause = Some(summary(&samples, &events, args.block)?);
    NAMES.iter().try_for_each(|name| subject.unlink(name))
}

/// Runs a worker; whatever ends it ends the measurement.
fn ended<T>(stop: &AtomicBool, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let result = work();
    stop.store(true, Ordering::Relaxed);
    result
}

fn read(
    subject: &dyn Subject,
    data: &[u8],
    blocks: u64,
    clock: Instant,
    until: impl Fn() -> bool,
) -> Result<Vec<Sample>> {
    let names = [NAMES[0].to_owned()];
    let mut file = subject.open(NAMES[0])?;
    let mut buf = AlignedBuf::zeroed(data.len());
    let mut dice = 1;
    let mut samples = Vec::new();
    while until() {
        subject.drop_caches(&names)?;
        let offset = splitmix64(&mut dice) % blocks * data.len() as u64;
        let from = clock.elapsed();
        let got = file.read_at(offset, &mut buf)?;
        samples.push(Sample::since(clock, from));
        if got != data.len() || buf[..] != data[..] {
            return fail(format!(
                "wrong data: {} at byte {offset}: do not trust this storage",
                NAMES[0]
            ));
        }
    }
    file.close()?;
    Ok(samples)
}

fn write(
    subject: &dyn Subject,
    data: &[u8],
    blocks: u64,
    clock: Instant,
    until: impl Fn() -> bool,
) -> Result<Vec<Sample>> {
    let mut file = subject.create(NAMES[1])?;
    let mut samples = Vec::new();
    for block in (0..blocks).cycle().take_while(|_| until()) {
        let from = clock.elapsed();
        file.write_at(block * data.len() as u64, data)?;
        file.sync()?;
        samples.push(Sample::since(clock, from));
    }
    file.close()?;
    Ok(samples)
}

fn latency(samples: &[Sample]) -> Result<Latency> {
    let histogram = histogram(samples)?;
    let ms = |us: u64| us as f64 / 1000.0;
    Ok(Latency {
        p50: ms(histogram.value_at_quantile(0.5)),
        p99: ms(histogram.value_at_quantile(0.99)),
        max: ms(histogram.max()),
    })
}

fn histogram(samples: &[Sample]) -> Result<Histogram<u64>> {
    let mut histogram =
        Histogram::new_with_bounds(1, MAX_US, 3).context("cannot record latencies")?;
    for sample in samples {
        histogram.saturating_record(sample.took.as_micros() as u64);
    }
    Ok(histogram)
}

fn summary(samples: &[Vec<Sample>; 2], events: &[Event], block: u64) -> Result<PauseReport> {
    let [reads, writes] = samples;
    let p999 = |samples: &[Sample]| -> Result<f64> {
        Ok(histogram(samples)?.value_at_quantile(0.999) as f64 / 1000.0)
    };
    let ends = reads.iter().chain(writes).map(Sample::end);
    let end = ends.max().unwrap_or_default();
    let rates = |time: Duration, within: &dyn Fn(Duration) -> bool| {
        let mib = |samples: &[Sample]| {
            let count = samples.iter().filter(|s| within(s.end())).count();
            let bytes = count as f64 * block as f64;
            bytes / f64::from(1 << 20) / time.as_secs_f64().max(1e-9)
        };
        Rates {
            read: mib(reads),
            write: mib(writes),
        }
    };
    let disturbed: Duration = events.iter().map(|e| e.to.saturating_sub(e.from)).sum();
    let within = |from: Duration, to: Duration| Longest {
        read_ms: longest(reads, from, to),
        write_ms: longest(writes, from, to),
    };
    let second = |second| SecondReport {
        second,
        longest: within(Duration::from_secs(second), Duration::from_secs(second + 1)),
    };
    let fault = |event: &Event| FaultReport {
        what: event.what.clone(),
        at_seconds: event.from.as_secs_f64(),
        seconds: event.to.saturating_sub(event.from).as_secs_f64(),
        longest: within(event.from, event.to),
        mib_per_second: rates(event.to.saturating_sub(event.from), &|at| event.holds(at)),
    };
    Ok(PauseReport {
        longest: within(Duration::ZERO, Duration::MAX),
        p999: Longest {
            read_ms: p999(reads)?,
            write_ms: p999(writes)?,
        },
        calm: rates(end.saturating_sub(disturbed), &|at| {
            !events.iter().any(|event| event.holds(at))
        }),
        faults: events.iter().map(fault).collect(),
        seconds: (0..=end.as_secs()).map(second).collect(),
    })
}

/// The longest operation that was in progress at some time between `from` and `to`, milliseconds.
fn longest(samples: &[Sample], from: Duration, to: Duration) -> f64 {
    samples
        .iter()
        .filter(|s| s.from < to && s.end() >= from)
        .map(|s| s.took.as_secs_f64() * 1000.0)
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_belongs_to_every_second_and_fault_that_it_touches() {
        let ms = Duration::from_millis;
        let sample = |from, took| Sample {
            from: ms(from),
            took: ms(took),
        };
        let reads = vec![sample(0, 10), sample(900, 1500), sample(2400, 20)];
        let events = [Event {
            what: "kill".to_owned(),
            from: ms(2000),
            to: ms(2100),
        }];
        let report = summary(&[reads, vec![sample(100, 5)]], &events, 1 << 20).expect("recorded");
        let longest: Vec<_> = report.seconds.iter().map(|s| s.longest.read_ms).collect();
        assert_eq!(longest, [1500.0, 1500.0, 1500.0]);
        let fault = &report.faults[0].longest;
        assert_eq!((fault.read_ms, fault.write_ms), (1500.0, 0.0));
        assert!((report.longest.write_ms - 5.0).abs() < 1e-9);
        // Three reads, none of which ended during the fault, in 2.42 s less 0.1 s.
        assert!((report.calm.read - 3.0 / 2.32).abs() < 0.01, "{report:?}");
        assert!(report.faults[0].mib_per_second.read.abs() < 1e-9);
    }
}
