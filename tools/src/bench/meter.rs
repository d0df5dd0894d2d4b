//! Wall and CPU time of what is measured.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::failure::{Context, Result};

/// Wall and CPU time of a phase.
pub(super) struct Meter {
    servers: Vec<i32>,
    /// This process and mounts.
    clients: Vec<i32>,
    /// A file with the ids of more processes. It is read when a phase begins, because what happens between phases
    /// may replace them (a client that is mounted anew).
    more: Option<PathBuf>,
    ticks_per_second: f64,
}

/// When a phase began.
pub(super) struct Start {
    /// Processes and the ticks that each had used.
    servers: Vec<(i32, u64)>,
    clients: Vec<(i32, u64)>,
    at: Instant,
}

/// What a phase took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) seconds: f64,
    /// Of all processes.
    pub(super) cpu_seconds: f64,
    /// Of those this process and mounts, that is what is not spent by servers.
    pub(super) client_cpu_seconds: f64,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.client_cpu_seconds += other.client_cpu_seconds;
    }
}

impl Meter {
    /// CPU time of this process.
    pub(super) fn new() -> Self {
        Self {
            servers: Vec::new(),
            clients: vec![std::process::id() as i32],
            more: None,
            ticks_per_second: rustix::param::clock_ticks_per_second() as f64,
        }
    }

    /// And of these servers and mounts.
    pub(super) fn and_those(mut self, servers: Vec<i32>, mounts: Vec<i32>) -> Self {
        self.servers.extend(servers);
        self.clients.extend(mounts);
        self
    }

    /// And of those that are listed in this file, which count as servers.
    pub(super) fn and_those_in(mut self, file: Option<PathBuf>) -> Self {
        self.more = file;
        self
    }

    pub(super) fn time<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Spent)> {
        let start = self.start()?;
        let value = work()?;
        Ok((value, self.stop(&start)))
    }

    pub(super) fn start(&self) -> Result<Start> {
        let mut servers = self.servers.clone();
        if let Some(file) = &self.more {
            let what = || format!("cannot read process ids from {}", file.display());
            for pid in fs::read_to_string(file).context(what())?.split_whitespace() {
                servers.push(pid.parse().context(what())?);
            }
        }
        servers.sort_unstable();
        servers.dedup();
        servers.retain(|pid| !self.clients.contains(pid));
        let used = |pids: &[i32]| {
            let used = pids.iter().filter_map(|&pid| Some((pid, ticks(pid)?)));
            used.collect()
        };
        Ok(Start {
            servers: used(&servers),
            clients: used(&self.clients),
            at: Instant::now(),
        })
    }

    pub(super) fn stop(&self, start: &Start) -> Spent {
        let seconds = start.at.elapsed().as_secs_f64();
        // Nothing is known any more of a process that ended meanwhile.
        let since =
            |&(pid, before): &(i32, u64)| ticks(pid).map_or(0, |now| now.saturating_sub(before));
        let spent = |used: &[(i32, u64)]| {
            used.iter().map(since).sum::<u64>() as f64 / self.ticks_per_second
        };
        let client_cpu_seconds = spent(&start.clients);
        Spent {
            seconds,
            cpu_seconds: spent(&start.servers) + client_cpu_seconds,
            client_cpu_seconds,
        }
    }
}

/// User and system time of a process, in clock ticks: fields 14 and 15 of its stat file.
fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, in parentheses, with whatever characters it likes.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn cpu_time_of_this_process_grows_with_work() {
        let meter = Meter::new();
        let ((), spent) = meter
            .time(|| {
                let start = Instant::now();
                while start.elapsed().as_millis() < 100 {
                    std::hint::spin_loop();
                }
                Ok(())
            })
            .expect("no failure");
        assert!(spent.seconds >= 0.1 && spent.cpu_seconds > 0.0, "{spent:?}");
        let servers = spent.cpu_seconds - spent.client_cpu_seconds;
        assert!(servers.abs() < 1e-9, "there are none: {spent:?}");
    }

    #[test]
    fn listed_processes_are_those_of_the_moment_when_a_phase_begins() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let file = temp.path().join("pids");
        let meter = Meter::new().and_those_in(Some(file.clone()));
        assert!(meter.start().is_err(), "the file is missing");
        fs::write(&file, "1 x").expect("written");
        assert!(meter.start().is_err(), "no number");

        let mut busy = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("a shell");
        fs::write(&file, format!("{}\n", busy.id())).expect("written");
        let ((), spent) = meter
            .time(|| {
                std::thread::sleep(Duration::from_millis(500));
                Ok(())
            })
            .expect("measured");
        busy.kill().expect("killed");
        busy.wait().expect("ended");
        let servers = spent.cpu_seconds - spent.client_cpu_seconds;
        assert!(servers >= 0.03, "{spent:?}");
    }
}
