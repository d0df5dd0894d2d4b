//! Training input: emulated accelerators that wait for batches of shuffled samples, with the record shapes of
//! MLPerf Storage (v1.0, H100; <https://github.com/mlcommons/storage>).
//!
//! An accelerator takes a batch from a bounded queue that its reading threads fill, then computes: its thread
//! sleeps for the computing time, and the processor is left to those who read. Its utilisation is the
//! time it computed ÷ the time since its first batch was complete. Samples are padded to 4 KiB so that O_DIRECT
//! reads the same bytes; before a file is opened its pages are dropped from this host's memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::layout::splitmix64;

use crate::cli::{LoaderArgs, Shape};
use crate::failure::{Context, Failure, Result, fail};

use super::Meter;
use super::report::{BenchReport, LoaderReport};
use super::stream::{in_parallel, random};
use super::subject::Subject;

/// Bytes per read at most. A file holds this piece again and again.
const PIECE: u64 = 1 << 20;
/// Samples are padded to a multiple of this, which is also how much of each read is compared.
const ALIGN: u64 = 4096;
/// Data set unless told otherwise, bytes.
const DATA_SET: u64 = 1 << 30;
/// Batches that wait for an accelerator at most.
const BATCHES_AHEAD: u64 = 2;

/// A shape after scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plan {
    /// Bytes of a sample.
    sample: u64,
    samples_per_file: u64,
    files: u64,
    /// Samples of a batch.
    batch: u64,
    compute: Duration,
    wanted_percent: f64,
}

impl Plan {
    fn new(args: &LoaderArgs) -> Self {
        // Sample bytes, samples per file, samples per batch, seconds, per cent: as the benchmark's files say.
        let (sample, samples_per_file, batch, seconds, wanted_percent) = match args.shape {
            Shape::Unet3d => (146_600_628, 1, 7, 0.323, 90.0),
            Shape::Resnet50 => (114_660, 1251, 400, 0.224, 90.0),
            Shape::Cosmoflow => (2_828_486, 1, 1, 0.0035, 70.0),
        };
        let files = DATA_SET.div_ceil(sample * samples_per_file);
        let files = args.files.map_or(files, u64::from);
        let scale = u64::from(args.scale);
        // What is left after division is rounded; the computing time follows the bytes that a batch really has.
        let (small, few, part) = if samples_per_file == 1 {
            ((sample / scale).max(1), 1, batch)
        } else {
            (
                sample,
                (samples_per_file / scale).max(1),
                (batch / scale).max(1),
            )
        };
        let share = (small * part) as f64 / (sample * batch) as f64;
        Self {
            sample: small.next_multiple_of(ALIGN),
            samples_per_file: few,
            files,
            batch: part,
            compute: Duration::from_secs_f64(seconds * share * args.compute),
            wanted_percent,
        }
    }

    fn file_size(&self) -> u64 {
        self.sample * self.samples_per_file
    }
}

/// What an accelerator did.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    batches: u64,
    busy: Duration,
    /// Since its first batch was complete.
    elapsed: Duration,
}

/// What the readers share.
struct Readers<'a> {
    subject: &'a dyn Subject,
    plan: Plan,
    data: &'a [u8],
    /// Files taken so far, over all epochs.
    taken: AtomicU64,
    samples: AtomicU64,
    stop: AtomicBool,
}

/// Makes the data set, unmeasured, and trains for `args.seconds`.
pub(super) fn run(
    subject: &dyn Subject,
    args: &LoaderArgs,
    meter: &Meter,
    report: &mut BenchReport,
) -> Result<()> {
    let plan = Plan::new(args);
    let data = random(PIECE as usize);
    let writers = u64::from(args.readers).min(plan.files);
    in_parallel(writers as u32, |job| {
        (u64::from(job)..plan.files)
            .step_by(writers as usize)
            .try_for_each(|file| write(subject, &plan, &data, file))
    })?;
    let names: Vec<_> = (0..plan.files).map(name).collect();
    subject.drop_caches(&names)?;

    let readers = Readers {
        subject,
        plan,
        data: &data,
        taken: AtomicU64::new(0),
        samples: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let until = Instant::now() + Duration::from_secs(args.seconds);
    let (work, spent) = meter.time(|| train(&readers, args, until))?;
    let samples = readers.samples.load(Ordering::Relaxed);
    report.add("load", spent, samples * plan.sample, samples, None);
    report.loader = Some(summary(&plan, &work));
    names.iter().try_for_each(|name| subject.unlink(name))
}

fn train(readers: &Readers<'_>, args: &LoaderArgs, until: Instant) -> Result<Vec<Work>> {
    let ahead = (readers.plan.batch * BATCHES_AHEAD) as usize;
    let panicked = || Failure::new("a worker thread panicked");
    std::thread::scope(|scope| {
        let mut accelerators = Vec::new();
        let mut threads = Vec::new();
        for _ in 0..args.accelerators {
            let (sender, receiver) = sync_channel(ahead);
            for _ in 0..args.readers {
                let sender = sender.clone();
                threads.push(scope.spawn(move || {
                    let read = readers.read(&sender);
                    if read.is_err() {
                        readers.stop.store(true, Ordering::Relaxed);
                    }
                    read
                }));
            }
            accelerators.push(scope.spawn(move || accelerate(&receiver, &readers.plan, until)));
        }
        let work = accelerators
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join);
        let work: Vec<_> = work.collect();
        readers.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| panicked())??;
        }
        let work = work.into_iter().map(|work| work.map_err(|_| panicked()));
        work.collect()
    })
}

impl Readers<'_> {
    /// Reads file after file until nobody wants samples any more.
    fn read(&self, samples: &SyncSender<()>) -> Result<()> {
        let mut order = Order::default();
        let mut buf = AlignedBuf::zeroed(PIECE as usize);
        while !self.stop.load(Ordering::Relaxed) {
            let taken = self.taken.fetch_add(1, Ordering::Relaxed);
            let name = name(order.file(taken, self.plan.files));
            self.subject.drop_caches(std::slice::from_ref(&name))?;
            let mut file = self.subject.open(&name)?;
            for sample in 0..self.plan.samples_per_file {
                let start = sample * self.plan.sample;
                let end = start + self.plan.sample;
                for offset in (start..end).step_by(PIECE as usize) {
                    let length = PIECE.min(end - offset) as usize;
                    let got = file.read_at(offset, &mut buf[..length])?;
                    let from = (offset % PIECE) as usize;
                    let expected = &self.data[from..from + ALIGN as usize];
                    if got != length || buf[..ALIGN as usize] != *expected {
                        return fail(format!(
                            "wrong data: {name} at byte {offset}: do not trust this storage"
                        ));
                    }
                }
                self.samples.fetch_add(1, Ordering::Relaxed);
                // The accelerator has ended.
                if samples.send(()).is_err() {
                    return file.close();
                }
            }
            file.close()?;
        }
        Ok(())
    }
}

/// The files of an epoch in an order of its own, the same for all readers.
#[derive(Default)]
struct Order {
    epoch: u64,
    files: Vec<u64>,
}

impl Order {
    fn file(&mut self, taken: u64, files: u64) -> u64 {
        let epoch = taken / files;
        if self.files.is_empty() || self.epoch != epoch {
            self.epoch = epoch;
            self.files = (0..files).collect();
            let mut dice = epoch;
            for at in (1..files).rev() {
                let other = splitmix64(&mut dice) % (at + 1);
                self.files.swap(at as usize, other as usize);
            }
        }
        self.files[(taken % files) as usize]
    }
}

/// Takes batches and computes until then.
fn accelerate(samples: &Receiver<()>, plan: &Plan, until: Instant) -> Work {
    let mut work = Work::default();
    let mut first = None;
    while batch(samples, plan, until) {
        let start = Instant::now();
        let first = *first.get_or_insert(start);
        compute(plan.compute);
        work.batches += 1;
        work.busy += start.elapsed();
        work.elapsed = first.elapsed();
    }
    // What it waited for the batch that did not come counts.
    if let Some(first) = first {
        work.elapsed = first.elapsed();
    }
    work
}

/// `false`: there is no whole batch until then, or the readers are gone.
fn batch(samples: &Receiver<()>, plan: &Plan, until: Instant) -> bool {
    (0..plan.batch).all(|_| {
        let left = until.saturating_duration_since(Instant::now());
        !left.is_zero() && samples.recv_timeout(left).is_ok()
    })
}

/// Emulated: nothing is computed, and no processor is used.
fn compute(time: Duration) {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

fn summary(plan: &Plan, work: &[Work]) -> LoaderReport {
    let percent =
        |work: &Work| 100.0 * work.busy.as_secs_f64() / work.elapsed.as_secs_f64().max(1e-9);
    let rate =
        |work: &Work| (work.batches * plan.batch) as f64 / work.elapsed.as_secs_f64().max(1e-9);
    LoaderReport {
        accelerators: work.len() as u32,
        utilisation_percent: work.iter().map(percent).reduce(f64::min).unwrap_or(0.0),
        wanted_percent: plan.wanted_percent,
        samples_per_second: work.iter().map(rate).sum(),
        batches: work.iter().map(|work| work.batches).sum(),
    }
}

fn write(subject: &dyn Subject, plan: &Plan, data: &[u8], number: u64) -> Result<()> {
    let name = name(number);
    let mut file = subject.create(&name)?;
    for offset in (0..plan.file_size()).step_by(PIECE as usize) {
        let length = PIECE.min(plan.file_size() - offset) as usize;
        file.write_at(offset, &data[..length])
            .context(format!("{name} at byte {offset}"))?;
    }
    file.sync()?;
    file.close()
}

fn name(number: u64) -> String {
    format!("samples-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(shape: Shape, scale: u32) -> LoaderArgs {
        LoaderArgs {
            shape,
            accelerators: 1,
            readers: 1,
            seconds: 1,
            files: None,
            scale,
            compute: 1.0,
        }
    }

    #[test]
    fn a_scaled_shape_asks_for_the_same_rate() {
        let rate = |plan: Plan| (plan.batch * plan.sample) as f64 / plan.compute.as_secs_f64();
        for shape in [Shape::Unet3d, Shape::Resnet50, Shape::Cosmoflow] {
            let whole = rate(Plan::new(&args(shape, 1)));
            let part = rate(Plan::new(&args(shape, 20)));
            assert!((part / whole - 1.0).abs() < 0.05, "{shape:?}");
        }
        let plan = Plan::new(&args(Shape::Resnet50, 10));
        assert_eq!((plan.samples_per_file, plan.batch), (125, 40));
    }

    #[test]
    fn an_epoch_has_every_file_once_and_epochs_differ() {
        let mut order = Order::default();
        let mut epoch = |n: u64| -> Vec<_> {
            (n * 50..(n + 1) * 50)
                .map(|at| order.file(at, 50))
                .collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        for mut files in [first, second] {
            files.sort_unstable();
            assert_eq!(files, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_accelerator_that_waits_half_of_the_time_is_half_busy() {
        let ms = Duration::from_millis;
        let work = |busy, elapsed| Work {
            batches: 10,
            busy: ms(busy),
            elapsed: ms(elapsed),
        };
        let plan = Plan::new(&args(Shape::Unet3d, 1));
        let report = summary(&plan, &[work(1000, 1000), work(500, 1000)]);
        assert!(
            (report.utilisation_percent - 50.0).abs() < 1e-6,
            "the worst one"
        );
        assert!((report.samples_per_second - 140.0).abs() < 1e-6);
        assert_eq!(report.batches, 20);
    }
}
