//! Latencies of single operations.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::failure::{Context, Result};

use super::report::Latency;

/// Longest latency that is told from a longer one, microseconds.
const MAX_US: u64 = 600_000_000;

/// An empty histogram of microseconds.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, MAX_US, 3).context("cannot record latencies")
}

/// For the report.
pub(super) fn latency(all: &Histogram<u64>) -> Latency {
    let ms = |us: u64| us as f64 / 1000.0;
    Latency {
        p50: ms(all.value_at_quantile(0.5)),
        p99: ms(all.value_at_quantile(0.99)),
        max: ms(all.max()),
    }
}

/// Counts an operation.
pub(super) fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record(took.as_micros() as u64);
}
