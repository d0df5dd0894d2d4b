//! Results of a benchmark.

use serde::Serialize;

use crate::show;

use super::Spent;

/// The shape of `emberfs bench --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct BenchReport {
    subject: String,
    phases: Vec<Phase>,
    /// Of `bench pause` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pause: Option<PauseReport>,
    /// Of `bench loader` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) loader: Option<LoaderReport>,
}

/// How the emulated accelerators fared.
#[derive(Debug, Serialize)]
pub(super) struct LoaderReport {
    pub(super) accelerators: u32,
    /// Time that they computed ÷ time that passed, per cent; the least of all accelerators.
    pub(super) utilisation_percent: f64,
    /// What the shape's benchmark demands.
    pub(super) wanted_percent: f64,
    /// Of all accelerators together.
    pub(super) samples_per_second: f64,
    pub(super) batches: u64,
}

/// Longest operations, milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Longest {
    pub(super) read_ms: f64,
    pub(super) write_ms: f64,
}

/// Throughput, MiB per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Rates {
    pub(super) read: f64,
    pub(super) write: f64,
}

/// What an application saw.
#[derive(Debug, Serialize)]
pub(super) struct PauseReport {
    pub(super) longest: Longest,
    /// All but one operation in a thousand were done within this.
    pub(super) p999: Longest,
    /// While nothing was done to the cluster.
    pub(super) calm: Rates,
    pub(super) faults: Vec<FaultReport>,
    pub(super) seconds: Vec<SecondReport>,
}

/// What it saw of one thing that was done to the cluster.
#[derive(Debug, Serialize)]
pub(super) struct FaultReport {
    pub(super) what: String,
    /// When it began, since the measurement began.
    pub(super) at_seconds: f64,
    /// How long it lasted.
    pub(super) seconds: f64,
    pub(super) longest: Longest,
    pub(super) mib_per_second: Rates,
}

/// What it saw in one second.
#[derive(Debug, Serialize)]
pub(super) struct SecondReport {
    pub(super) second: u64,
    pub(super) longest: Longest,
}

/// One phase.
#[derive(Debug, Serialize)]
struct Phase {
    #[serde(rename = "phase")]
    name: &'static str,
    seconds: f64,
    /// Of servers and clients together.
    cpu_seconds: f64,
    /// Of those the process that measures, and mounts.
    client_cpu_seconds: f64,
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
            pause: None,
            loader: None,
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
            client_cpu_seconds: spent.client_cpu_seconds,
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
                format!("{:.2}", phase.cpu_seconds - phase.client_cpu_seconds),
                format!("{:.2}", phase.client_cpu_seconds),
            ]
        });
        let header = [
            "phase",
            "MiB/s",
            "ops/s",
            "p50 ms",
            "p99 ms",
            "max ms",
            "seconds",
            "servers CPU s",
            "client CPU s",
        ];
        let mut out = format!("{}\n{}", self.subject, show::table(&header, rows));
        if let Some(loader) = &self.loader {
            let LoaderReport {
                utilisation_percent,
                wanted_percent,
                samples_per_second,
                batches,
                ..
            } = loader;
            let count = show::count(loader.accelerators as usize, "accelerator");
            let line = format!(
                "\n\n{count}, busy {utilisation_percent:.1} % of the time (wanted: {wanted_percent:.0} %), \
                 {samples_per_second:.0} samples/s in {batches} batches"
            );
            out.push_str(&line);
        }
        if let Some(pause) = &self.pause {
            out.push_str("\n\n");
            out.push_str(&pause.render());
        }
        out
    }
}

impl PauseReport {
    fn render(&self) -> String {
        let row = |what: &str, times: [String; 2], longest: Longest, rates: Option<Rates>| {
            let rates = rates.map_or([String::new(), String::new()], |r| {
                [rate(r.read), rate(r.write)]
            });
            let longest = [longest.read_ms, longest.write_ms].map(|ms| format!("{ms:.0}"));
            let cells = [
                vec![what.to_owned()],
                times.into(),
                longest.into(),
                rates.into(),
            ];
            cells.concat()
        };
        let fault = |f: &FaultReport| {
            let times = [f.at_seconds, f.seconds].map(|seconds| format!("{seconds:.1}"));
            row(&f.what, times, f.longest, Some(f.mib_per_second))
        };
        let mut rows: Vec<_> = self.faults.iter().map(fault).collect();
        let none = || [String::new(), String::new()];
        rows.push(row(
            "99.9 %, and MiB/s undisturbed",
            none(),
            self.p999,
            Some(self.calm),
        ));
        rows.push(row("longest of all", none(), self.longest, None));
        let header = [
            "pause",
            "at s",
            "for s",
            "read ms",
            "write ms",
            "read MiB/s",
            "write MiB/s",
        ];
        show::table(&header, rows)
    }
}

pub(super) fn rate(per_second: f64) -> String {
    if per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}
