//! `emberfs bench`: a few honest numbers about a cluster, through the native client, or about any
//! directory (a mount, a local disk) for comparison.
//!
//! Data is random, so that nothing below can compress it away; writes end with fsync and count it;
//! reads start with dropped caches. CPU time is that of this process and, for a cluster on this host,
//! of all its processes.
//!
//! Floors are measured in the same run: [`disk`] takes the chunk engine and fio in turn,
//! [`floor`] moves checksummed bytes over loopback.

mod batch;
mod checkpoint;
mod disk;
mod floor;
mod incast;
mod latency;
mod loader;
mod pause;
mod publish;
mod randread;
mod report;
mod small;
mod stream;
mod subject;

use std::time::Instant;

use crate::cli::{BenchArgs, DirArg, Workload};
use crate::failure::{Context, Exit, Failure, Result, fail};
use crate::local::LocalCluster;
use crate::output::say;
use crate::progress::Progress;
use crate::rpc::Seat;

use report::BenchReport;
use subject::{DirSubject, NativeSubject, Subject};

/// `emberfs bench write|read|meta|pause`.
pub(crate) async fn bench(cluster: Option<String>, args: BenchArgs) -> Result<Exit> {
    if args.direct && args.path.is_none() {
        return fail("--direct is about files of a directory: give --path");
    }
    match &args.workload {
        Workload::Disk(_) | Workload::Floor(_) | Workload::Incast(_) | Workload::Report(_) => {
            return alone(args).await;
        }
        _ => {}
    }
    let dir = DirArg {
        dir: args.dir.clone(),
    };
    let seat = match &args.path {
        Some(_) => None,
        None => Some(Seat::find(cluster, &dir)?),
    };
    // A mount of the cluster in --dir is measured through --path: its servers' time counts as well.
    let local = match &seat {
        Some(seat) => seat.local.clone(),
        None => Seat::find(None, &dir).ok().and_then(|seat| seat.local),
    };
    let local = local.map(|(dir, plan)| LocalCluster { dir, plan });
    let pids = match &local {
        Some(cluster) => pids(cluster).await?,
        None => Vec::new(),
    };
    let progress = Progress::start("Measuring");
    let (path, workload) = (args.path.clone(), args.workload.clone());
    let work = move || -> Result<BenchReport> {
        let subject: Box<dyn Subject> = match (path, seat) {
            (Some(path), _) => {
                // Between two reads only the file itself is forgotten, not all that the machine knows.
                let root = rustix::process::geteuid().is_root();
                let often = matches!(workload, Workload::Pause(_) | Workload::Loader(_));
                Box::new(DirSubject::new(&path, root && !often, args.direct)?)
            }
            (None, Some(seat)) => Box::new(NativeSubject::connect(&seat.address)?),
            (None, None) => {
                return Err(Failure::new("nothing to measure: give --cluster or --path"));
            }
        };
        let report = measure(subject.as_ref(), workload, local.as_ref(), &pids);
        subject.finish();
        report
    };
    let report = blocking(work).await?;
    drop(progress);
    print(&report, args.json, || report.render())
}

/// What needs no cluster and no directory with files.
async fn alone(args: BenchArgs) -> Result<Exit> {
    let progress = Progress::start("Measuring");
    match args.workload {
        Workload::Disk(disk) => {
            let Some(path) = &args.path else {
                return fail("say where: give --path, a directory on the disk to measure");
            };
            let report = disk::run(path, &disk).await?;
            drop(progress);
            print(&report, args.json, || report.render())
        }
        Workload::Floor(floor) => {
            let report = blocking(move || floor::run(&floor)).await?;
            drop(progress);
            print(&report, args.json, || report.render())
        }
        Workload::Incast(incast) => {
            let report = blocking(move || Ok(incast::run(&incast))).await?;
            drop(progress);
            print(&report, args.json, || report.render())
        }
        Workload::Report(publish) => {
            let exit = blocking(move || publish::run(&publish)).await;
            drop(progress);
            exit
        }
        _ => fail("this workload needs a cluster or a directory"),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("the measurement broke off")?
}

fn print(report: &impl serde::Serialize, json: bool, render: impl Fn() -> String) -> Result<Exit> {
    if json {
        say(serde_json::to_string_pretty(report).context("cannot write JSON")?)?;
    } else {
        say(render())?;
    }
    Ok(Exit::Success)
}

fn measure(
    subject: &dyn Subject,
    workload: Workload,
    local: Option<&LocalCluster>,
    pids: &[i32],
) -> Result<BenchReport> {
    let meter = Meter::new(pids.to_vec());
    let mut report = BenchReport::new(subject.describe());
    match workload {
        Workload::Write(args) => stream::write(subject, &args, &meter, &mut report)?,
        Workload::Read(args) => stream::read(subject, &args, &meter, &mut report)?,
        Workload::Batch(args) => batch::run(subject, &args, &meter, &mut report)?,
        Workload::Meta(args) => small::run(subject, &args, &meter, &mut report)?,
        Workload::Pause(args) => pause::run(subject, &args, local, &meter, &mut report)?,
        Workload::Randread(args) => randread::run(subject, &args, &meter, &mut report)?,
        Workload::Checkpoint(args) => checkpoint::run(subject, &args, &meter, &mut report)?,
        Workload::Loader(args) => loader::run(subject, &args, &meter, &mut report)?,
        Workload::Disk(_) | Workload::Floor(_) | Workload::Incast(_) | Workload::Report(_) => {
            return fail("this workload needs no cluster and no directory");
        }
    }
    Ok(report)
}

async fn pids(cluster: &LocalCluster) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for process in cluster.processes() {
        pids.extend(process.running().await?.map(|running| running.pid()));
    }
    Ok(pids)
}

/// Wall and CPU time of a phase.
struct Meter {
    pids: Vec<i32>,
    ticks_per_second: f64,
}

/// When a phase began.
struct Start {
    cpu_seconds: f64,
    at: Instant,
}

/// What a phase took.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    seconds: f64,
    cpu_seconds: f64,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
    }
}

impl Meter {
    fn new(mut pids: Vec<i32>) -> Self {
        pids.push(std::process::id() as i32);
        Self {
            pids,
            ticks_per_second: rustix::param::clock_ticks_per_second() as f64,
        }
    }

    fn time<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Spent)> {
        let start = self.start();
        let value = work()?;
        Ok((value, self.stop(&start)))
    }

    fn start(&self) -> Start {
        Start {
            cpu_seconds: self.cpu_seconds(),
            at: Instant::now(),
        }
    }

    fn stop(&self, start: &Start) -> Spent {
        Spent {
            seconds: start.at.elapsed().as_secs_f64(),
            cpu_seconds: self.cpu_seconds() - start.cpu_seconds,
        }
    }

    fn cpu_seconds(&self) -> f64 {
        let ticks: u64 = self.pids.iter().filter_map(|pid| ticks(*pid)).sum();
        ticks as f64 / self.ticks_per_second
    }
}

/// User and system time of a process, in clock ticks: fields 14 and 15 of its stat file.
fn ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, in parentheses, with whatever characters it likes.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        BatchArgs, CheckpointArgs, LoaderArgs, PauseArgs, RandreadArgs, Shape, SmallArgs,
        StreamArgs,
    };

    #[test]
    fn cpu_time_of_this_process_grows_with_work() {
        let meter = Meter::new(Vec::new());
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
    }

    #[test]
    fn every_workload_runs_on_a_directory_and_leaves_nothing_behind() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let stream = StreamArgs {
            size: 3 << 19,
            block: 1 << 20,
            jobs: 2,
        };
        let small = SmallArgs {
            files: 10,
            size: 4096,
            jobs: 3,
        };
        let pause = PauseArgs {
            seconds: 1,
            block: 64 << 10,
            size: 1 << 20,
            kill: Vec::new(),
            freeze: Vec::new(),
            restart: Vec::new(),
            rolling: false,
            down: 0,
        };
        let batch = BatchArgs {
            files: 21,
            size: 5000,
            batch: 4,
            jobs: 2,
        };
        let randread = RandreadArgs {
            size: 3 << 19,
            block: 12 << 10,
            jobs: 2,
            seconds: 1,
        };
        let checkpoint = CheckpointArgs {
            ranks: 3,
            shard: 100_000,
            rounds: 2,
            block: 64 << 10,
        };
        let loader = LoaderArgs {
            shape: Shape::Resnet50,
            accelerators: 2,
            readers: 2,
            seconds: 1,
            files: Some(3),
            scale: 100,
            compute: 1.0,
        };
        for (workload, phases) in [
            (Workload::Write(stream), &["write"][..]),
            (Workload::Read(stream), &["read"]),
            (Workload::Meta(small), &["create", "stat", "read", "unlink"]),
            (Workload::Pause(pause), &["read", "write"]),
            (Workload::Batch(batch), &["create", "fetch"]),
            (Workload::Randread(randread), &["randread"]),
            (Workload::Checkpoint(checkpoint), &["save", "restore"]),
            (Workload::Loader(loader), &["load"]),
        ] {
            let subject = DirSubject::new(temp.path(), false, false).expect("a directory");
            let report = measure(&subject, workload, None, &[]).expect("measured");
            subject.finish();
            let json = serde_json::to_value(&report).expect("JSON");
            let names: Vec<_> = json["phases"]
                .as_array()
                .expect("an array")
                .iter()
                .collect();
            let names: Vec<_> = names
                .iter()
                .map(|p| p["phase"].as_str().unwrap_or(""))
                .collect();
            assert_eq!(names, phases);
        }
        assert_eq!(std::fs::read_dir(temp.path()).expect("there").count(), 0);
    }
}
