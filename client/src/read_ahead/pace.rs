//! How far to read ahead: far enough that the bytes are here when the reader comes for them, which is the
//! bandwidth-delay product of a stream: its speed times the time that fetching a block takes.
//!
//! Twice that, because a reader that waits for its bytes is measured no faster than they come: so
//! the window still grows to what the reader could take, as BBR's does at the start (Cardwell and others,
//! 2016). The speed is the highest of late, since many readers work in bursts.

use std::time::{Duration, Instant};

/// Bytes of a stream that make a measurement.
const SAMPLE: u64 = 1 << 20;
/// Shortest time that is believed for that.
const SHORTEST: Duration = Duration::from_micros(50);
/// With each measurement the highest speed so far loses this share, if it is not reached again.
const FADE: f64 = 1.0 / 16.0;
/// A new measurement's weight in the mean of delays, and in their mean deviation (Jacobson, 1988).
const WEIGHT: (f64, f64) = (1.0 / 8.0, 1.0 / 4.0);
/// Deviations above the mean that a fetch may take.
const DEVIATIONS: f64 = 2.0;
/// See the module.
const GAIN: f64 = 2.0;
/// Smallest window that a measurement leads to, bytes.
pub(super) const FLOOR: u64 = 2 << 20;

/// The speed of one stream.
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
    /// Bytes per second; 0: not known yet.
    highest: f64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            highest: 0.0,
        }
    }

    /// The reader moved on.
    pub(super) fn moved(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if self.bytes >= SAMPLE {
            let took = now.saturating_duration_since(self.since).max(SHORTEST);
            let speed = self.bytes as f64 / took.as_secs_f64();
            self.highest = speed.max(self.highest * (1.0 - FADE));
            (self.bytes, self.since) = (0, now);
        }
    }
}

/// How long fetching a block takes.
#[derive(Default)]
pub(super) struct Delay {
    known: bool,
    /// Seconds.
    mean: f64,
    deviation: f64,
}

impl Delay {
    pub(super) fn fetched(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        if !self.known {
            (self.known, self.mean, self.deviation) = (true, took, took / 2.0);
            return;
        }
        let error = took - self.mean;
        self.mean += WEIGHT.0 * error;
        self.deviation += WEIGHT.1 * (error.abs() - self.deviation);
    }

    /// Largest useful window of a stream, at most `limit`, which it is while nothing is known.
    pub(super) fn window(&self, pace: &Pace, limit: u64) -> u64 {
        if !self.known || pace.highest == 0.0 {
            return limit;
        }
        let delay = self.mean + DEVIATIONS * self.deviation;
        let product = GAIN * pace.highest * delay;
        (product as u64).max(FLOOR).min(limit)
    }
}
