//! When a slow read is asked of a second replica: after which wait, and how often at most.
//!
//! Hedged requests after Dean and Barroso, "The Tail at Scale" (CACM 2013): the second request goes out
//! when the first has waited longer than nearly all reads of its size do, so the tail is cut for a few
//! percent of extra load. The extra load has a limit of its own, because in an overloaded cluster
//! every read is slow and a second request for each would double the load.
//!
//! No I/O and no clock here: callers measure.

use std::time::Duration;

use parking_lot::Mutex;

/// Reads of one size class wait about equally long: up to 4 KiB, 16 KiB, 64 KiB and so on.
const CLASSES: usize = 8;
/// Buckets of a latency histogram, four per doubling.
const BUCKETS: usize = 64;
/// Upper end of the first bucket; the last one begins above three seconds.
const FIRST_BUCKET: Duration = Duration::from_micros(64);
/// Share of reads that the wait lets pass.
const PERCENTILE: u32 = 95;
/// Reads of a class from which its percentile means something.
const ENOUGH: u32 = 32;
/// When a histogram holds so many, all its counts are halved: what is old fades.
const FADE_AT: u32 = 1024;
/// Hedges that may come at once after a calm time.
const BURST: u32 = 10;
/// One hedge costs this much; a read earns the configured percentage of it.
const PRICE: u32 = 100;

/// Limits of hedging; see [`crate::ClientConfig`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Hedges per hundred reads; 0 turns them off.
    pub(crate) percent: u32,
    pub(crate) shortest: Duration,
    pub(crate) longest: Duration,
}

/// Recent latencies, and the hedges that may still be made.
pub(crate) struct Hedge {
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    credit: u32,
    classes: [Latencies; CLASSES],
}

/// A fading histogram of one size class.
struct Latencies {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Latencies {
    const NEW: Self = Self {
        counts: [0; BUCKETS],
        total: 0,
    };

    fn record(&mut self, latency: Duration) {
        self.counts[bucket(latency)] += 1;
        self.total += 1;
        if self.total >= FADE_AT {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
    }

    /// What [`PERCENTILE`] of the recent reads stayed below; `None`: too few to tell.
    fn high(&self) -> Option<Duration> {
        if self.total < ENOUGH {
            return None;
        }
        let wanted = (self.total * PERCENTILE).div_ceil(100);
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        at.map(upper_end)
    }
}

fn bucket(latency: Duration) -> usize {
    let doublings = (latency.as_secs_f64() / FIRST_BUCKET.as_secs_f64()).log2();
    // Negative and infinite values saturate.
    ((doublings * 4.0).ceil() as usize).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> Duration {
    FIRST_BUCKET.mul_f64((bucket as f64 / 4.0).exp2())
}

fn class(len: u32) -> usize {
    let pages = len.div_ceil(4096).max(1);
    (pages.next_power_of_two().ilog2().div_ceil(2) as usize).min(CLASSES - 1)
}

impl Hedge {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                credit: BURST * PRICE,
                classes: [Latencies::NEW; CLASSES],
            }),
        }
    }

    /// A read of `len` bytes begins: how long to wait for its answer before another replica is asked.
    /// `None`: for as long as it takes.
    pub(crate) fn begin(&self, len: u32) -> Option<Duration> {
        let Limits {
            percent,
            shortest,
            longest,
        } = self.limits;
        if percent == 0 {
            return None;
        }
        let mut state = self.state.lock();
        state.credit = (state.credit + percent).min(BURST * PRICE);
        let usual = state.classes[class(len)].high();
        Some(usual.map_or(longest, |high| high.max(shortest).min(longest)))
    }

    /// Takes the right to one hedge, if there is any left.
    pub(crate) fn take(&self) -> bool {
        let mut state = self.state.lock();
        let left = state.credit.checked_sub(PRICE);
        state.credit = left.unwrap_or(state.credit);
        left.is_some()
    }

    /// A replica answered after this time; or it had not when another one did.
    pub(crate) fn record(&self, len: u32, latency: Duration) {
        if self.limits.percent > 0 {
            self.state.lock().classes[class(len)].record(latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn hedge(percent: u32) -> Hedge {
        Hedge::new(Limits {
            percent,
            shortest: 5 * MS,
            longest: 1000 * MS,
        })
    }

    #[test]
    fn buckets_hold_what_they_say() {
        for us in [0, 1, 64, 65, 100, 128, 1000, 50_000, 1_000_000, 2_900_000] {
            let latency = Duration::from_micros(us);
            let end = upper_end(bucket(latency));
            assert!(latency <= end, "{latency:?} in the bucket up to {end:?}");
            assert!(
                end <= FIRST_BUCKET.max(latency.mul_f64(1.2)),
                "{latency:?} {end:?}"
            );
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(
            [0, 1, 4096, 4097, 16 << 10, 64 << 10, 1 << 20, 64 << 20].map(class),
            [0, 0, 0, 1, 1, 2, 4, 7]
        );
    }

    #[test]
    fn the_wait_follows_the_slowest_twentieth_of_each_size() {
        let hedge = hedge(5);
        assert_eq!(hedge.begin(4096), Some(1000 * MS), "nothing is known yet");
        for i in 0..200 {
            hedge.record(4096, if i % 50 == 0 { 500 * MS } else { 20 * MS });
        }
        let wait = hedge.begin(4096).unwrap();
        assert!((20 * MS..25 * MS).contains(&wait), "{wait:?}");
        assert_eq!(hedge.begin(1 << 20), Some(1000 * MS), "another size");
    }

    #[test]
    fn the_wait_stays_within_its_limits() {
        let hedge = hedge(5);
        (0..100).for_each(|_| hedge.record(0, MS / 10));
        assert_eq!(hedge.begin(0), Some(5 * MS));
        (0..2000).for_each(|_| hedge.record(0, 3000 * MS));
        assert_eq!(hedge.begin(0), Some(1000 * MS));
    }

    #[test]
    fn what_is_old_fades() {
        let hedge = hedge(5);
        (0..5000).for_each(|_| hedge.record(0, 400 * MS));
        (0..5000).for_each(|_| hedge.record(0, 10 * MS));
        assert!(hedge.begin(0).unwrap() < 20 * MS);
    }

    #[test]
    fn hedges_are_a_burst_and_then_a_share_of_the_reads() {
        let hedge = hedge(5);
        let mut hedges = 0;
        for _ in 0..1000 {
            assert!(hedge.begin(4096).is_some());
            hedges += u32::from(hedge.take());
        }
        // The first read earns nothing: the credit is full.
        assert_eq!(hedges, BURST + (1000 - 1) * 5 / 100);
    }

    #[test]
    fn calm_does_not_save_up_more_than_the_burst() {
        let hedge = hedge(5);
        (0..10_000).for_each(|_| _ = hedge.begin(4096));
        assert_eq!((0..100).filter(|_| hedge.take()).count(), BURST as usize);
    }

    #[test]
    fn zero_percent_is_off() {
        assert_eq!(hedge(0).begin(4096), None);
    }
}
