//! Results of a benchmark.

use serde::Serialize;

use crate::show;

use super::Spent;

/// The shape of `emberfs bench --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct BenchReport {
    subject: String,
    phases: Vec<Phase>,
}

/// One phase.
#[derive(Debug, Serialize)]
struct Phase {
    #[serde(rename = "phase")]
    name: &'static str,
    seconds: f64,
    cpu_seconds: f64,
    bytes: u64,
    operations: u64,
    mib_per_second: f64,
    operations_per_second: f64,
    /// Per operation, milliseconds; absent where operations are not timed one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<Latency>,
}

/// Latency of single operations, milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl BenchReport {
    pub(super) fn new(subject: String) -> Self {
        Self {
            subject,
            phases: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        name: &'static str,
        spent: Spent,
        bytes: u64,
        operations: u64,
        latency_ms: Option<Latency>,
    ) {
        let seconds = spent.seconds.max(1e-9);
        self.phases.push(Phase {
            name,
            seconds: spent.seconds,
            cpu_seconds: spent.cpu_seconds,
            bytes,
            operations,
            mib_per_second: bytes as f64 / f64::from(1 << 20) / seconds,
            operations_per_second: operations as f64 / seconds,
            latency_ms,
        });
    }

    pub(super) fn render(&self) -> String {
        let rows = self.phases.iter().map(|phase| {
            let ms = |pick: fn(&Latency) -> f64| {
                phase
                    .latency_ms
                    .map_or_else(|| "-".to_owned(), |l| format!("{:.2}", pick(&l)))
            };
            vec![
                phase.name.to_owned(),
                if phase.bytes == 0 {
                    "-".to_owned()
                } else {
                    rate(phase.mib_per_second)
                },
                rate(phase.operations_per_second),
                ms(|l| l.p50),
                ms(|l| l.p99),
                ms(|l| l.max),
                format!("{:.2}", phase.seconds),
                format!("{:.2}", phase.cpu_seconds),
            ]
        });
        let header = [
            "phase", "MiB/s", "ops/s", "p50 ms", "p99 ms", "max ms", "seconds", "CPU s",
        ];
        format!("{}\n{}", self.subject, show::table(&header, rows))
    }
}

fn rate(per_second: f64) -> String {
    if per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}
