//! The long run of `make sim`: many seeds on all cores, with progress.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::family::{Family, Setup};
use super::world::World;

/// Time between two lines of progress.
const REPORT: Duration = Duration::from_secs(10);

/// Makes the runs `from..from + seeds`, as `setup` sets them up. Panics with the seeds that failed.
pub(super) fn run(from: u64, seeds: u64, setup: impl Fn(u64) -> Setup + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let (next, done, acknowledged, undecided) = (
        AtomicU64::new(from),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
    );
    let failed = Mutex::new(Vec::new());
    let reported = Mutex::new(started);
    let line = || {
        let done = done.load(Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{done} of {seeds} seeds in {seconds:.0} s ({:.1} s per 1000), {} writes acknowledged, {} histories undecided, {} failed",
            seconds * 1000.0 / done.max(1) as f64,
            acknowledged.load(Ordering::Relaxed),
            undecided.load(Ordering::Relaxed),
            failed.lock().expect("no thread panics with it").len(),
        );
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= from + seeds {
                        break;
                    }
                    let setup = setup(n);
                    let seed = setup.seed;
                    match World::new(setup, false).run() {
                        Ok(summary) => {
                            acknowledged.fetch_add(summary.acknowledged, Ordering::Relaxed);
                            undecided.fetch_add(summary.undecided, Ordering::Relaxed);
                        }
                        Err(failure) => {
                            let what = failure.what.lines().next().unwrap_or_default().to_owned();
                            println!("seed {seed} ({}) fails: {what}", Family::of(seed).name());
                            failed.lock().expect("no thread panics with it").push(seed);
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut last = reported.lock().expect("no thread panics with it");
                    if last.elapsed() >= REPORT {
                        *last = Instant::now();
                        line();
                    }
                }
            });
        }
    });
    line();
    let failed = failed.into_inner().expect("no thread panics with it");
    assert!(
        failed.is_empty(),
        "seeds {failed:?} fail; EMBERFS_SIM_SEED=N make sim replays one"
    );
}
